"""criteria: each on a network where the answer is known."""

import copy
import sys
import types

import numpy as np
import pytest
import torch
from edgeprune_device.errors import InputError
from ultralytics.utils import DEFAULT_CFG

from edgeprune.data.samples import Samples
from edgeprune.pruning import criteria
from edgeprune.pruning.channels import trace
from edgeprune.pruning.criteria._slices import sums
from edgeprune.pruning.criteria.taylor import AT_ONCE
from edgeprune.pruning.features import moments

from ..small import network


@pytest.fixture
def small():
    """Of YOLOv8's own layers, whose answers are known."""
    return network(width=0.125)


def samples(count=4, size=96):
    generator = torch.Generator().manual_seed(1)
    boxes = np.array([[0, 0.5, 0.5, 0.4, 0.4], [1, 0.25, 0.25, 0.2, 0.3]])
    return Samples(torch.rand(count, 3, size, size, generator=generator), (boxes,) * count)


ALL = {"bn_scale", "energy", "l1", "l2", "lamp", "percentile", "random", "taylor"}


def test_every_file_is_a_criterion():
    assert set(criteria.names()) >= ALL
    for name in criteria.names():
        assert callable(criteria.load(name))


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_criterion_gives_each_atom_a_score_and_leaves_the_network_alone(name, small):
    before = {k: v.clone() for k, v in small.state_dict().items()}
    channels = trace(small)
    criterion = criteria.load(name)
    assert criteria.needs_samples(criterion) == (name in ("energy", "taylor"))
    scores = criterion(small, channels, samples() if criteria.needs_samples(criterion) else None)
    assert scores.shape == (channels.atoms,) and scores.dtype == np.float64
    free = np.concatenate([g.atoms for g in channels.groups if not g.frozen])
    assert np.isfinite(scores[free]).all() and (scores[free] >= 0).all()
    assert len(np.unique(scores[free])) > 0.7 * len(free)
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())
    assert all(p.grad is None for p in small.parameters())


def test_unknown_names_offer_the_near_ones():
    with pytest.raises(InputError, match="did you mean bn_scale"):
        criteria.load("bnscale")
    with pytest.raises(InputError, match="unknown criterion '_slices'"):
        criteria.load("_slices")
    with pytest.raises(InputError, match="criterion 'json:nothing'"):
        criteria.load("json:nothing")


def users(monkeypatch, function):
    """The criterion that `--criterion mine:own` finds."""
    module = types.ModuleType("mine")
    module.own = function
    monkeypatch.setitem(sys.modules, "mine", module)
    return criteria.load("mine:own")


def test_a_users_own(monkeypatch, small):
    channels = trace(small)
    own = users(monkeypatch, lambda model, channels, samples: np.arange(channels.atoms))
    scores = own(small, channels, None)
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(scores, np.arange(channels.atoms))


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda m, c, s: np.zeros(c.atoms - 1), "shape"),
        (lambda m, c, s: np.zeros((c.atoms, 1)), "shape"),
        (lambda m, c, s: None, r"shape \(\) instead"),
        (lambda m, c, s: np.zeros(c.atoms, dtype=bool), "bool instead of float"),
        (lambda m, c, s: np.full(c.atoms, 1j), "complex128 instead of float"),
        (lambda m, c, s: ["cheap"] * c.atoms, "instead of float"),
        (lambda m, c, s: np.full(c.atoms, np.nan), "NaN"),
        (lambda m, c, s: np.full(c.atoms, -np.inf), "NaN or minus infinity"),
        (lambda m, c, s: {}[3], r"failed: KeyError: 3 \(.*test_criteria.py, line \d+\)"),
        (lambda m, c: np.zeros(c.atoms), "failed: TypeError: .* takes 2 positional arguments"),
        (np.zeros(3), "not a function"),
    ],
)
def test_a_users_bad_scores_are_refused_in_one_line(function, message, monkeypatch, small):
    channels = trace(small)
    with pytest.raises(InputError, match="criterion 'mine:own'.*" + message) as caught:
        users(monkeypatch, function)(small, channels, None)
    assert "\n" not in str(caught.value)


def test_a_users_file_that_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("def score(:\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"criterion 'broken:score': .*broken.py, line 1"):
        criteria.load("broken:score")


def test_infinity_is_allowed_it_means_that_the_channel_stays(monkeypatch, small):
    channels = trace(small)
    scores = users(monkeypatch, lambda m, c, s: np.full(c.atoms, np.inf))(small, channels, None)
    assert np.isinf(scores).all()


# -- magnitude -------------------------------------------------------------------------------------------------------
HIDDEN = "model.2.m.0.cv1.conv"  # made by one convolution and its norm, read by one convolution


def planted(model, channels, factor=1e-3):
    """Channel 5 of the hidden width with weights of next to nothing wherever it is made and read."""
    for layer in ("cv1.conv", "cv1.bn"):
        model.get_submodule(f"model.2.m.0.{layer}").weight.data[5] *= factor
    model.get_submodule("model.2.m.0.cv2.conv").weight.data[:, 5] *= factor
    return channels.out[HIDDEN]


@pytest.mark.parametrize("name", ["l1", "l2", "lamp", "bn_scale", "percentile", "taylor"])
def test_a_planted_useless_channel_is_found(name, small):
    channels = trace(small)
    atoms = planted(small, channels)
    scores = criteria.load(name)(small, channels, samples())
    assert scores[atoms].argmin() == 5
    assert scores[atoms[5]] < 0.05 * np.sort(scores[atoms])[1]
    if name != "taylor":  # in the whole network too; a loss that is flat in some other channel is no error
        assert scores.argmin() == atoms[5]


@pytest.mark.parametrize("name, p", [("l1", 1), ("l2", 2)])
def test_magnitude_is_the_norm_of_all_slices_in_units_of_the_group(name, p, small):
    channels = trace(small)
    scores = criteria.load(name)(small, channels, None)
    made, norm, read = (
        small.get_submodule(f"model.2.m.0.{layer}").weight.detach().double().abs() ** p
        for layer in ("cv1.conv", "cv1.bn", "cv2.conv")
    )
    total = made.sum((1, 2, 3)) + norm + read.sum((0, 2, 3))
    np.testing.assert_allclose(scores[channels.out[HIDDEN]], (total / total.mean()).numpy(), rtol=1e-6)
    for group in channels.groups:
        assert scores[group.atoms].mean() == pytest.approx(1)


def test_magnitude_counts_every_layer_of_a_coupled_channel(small):
    """The second half of a C2f with a shortcut: made by cv1 and the bottleneck's cv2, read by the bottleneck's cv1 and
    twice by the C2f's cv2."""
    channels = trace(small)
    atom = channels.out["model.2.m.0.cv2.conv"][3]
    half = len(channels.out["model.2.m.0.cv2.conv"])
    expected = 0.0
    for name, dim, index in [
        ("cv1.conv", 0, half + 3), ("cv1.bn", 0, half + 3), ("m.0.cv2.conv", 0, 3), ("m.0.cv2.bn", 0, 3),
        ("m.0.cv1.conv", 1, 3), ("cv2.conv", 1, half + 3), ("cv2.conv", 1, 2 * half + 3),
    ]:  # fmt: skip
        expected += float(
            small.get_submodule(f"model.2.{name}").weight.detach().double().select(dim, index).abs().sum()
        )
    assert sums(small, channels, torch.abs)[atom] == pytest.approx(expected, rel=1e-9)


def test_magnitude_reads_a_transposed_convolution_the_other_way_round():
    """Its weight is (in, out, kh, kw): with as many outputs as inputs, the wrong way round would go unnoticed."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 1, bias=False), torch.nn.ConvTranspose2d(8, 8, 2, 2, bias=False), torch.nn.Conv2d(8, 3, 1)
    ).eval()
    model[1].weight.data.zero_()
    model[1].weight.data[2, 5] = 1.0
    channels = trace(model)
    total = sums(model, channels, torch.square)
    made, read = model[0].weight.square().sum((1, 2, 3)), model[2].weight.square().sum((0, 2, 3))
    made[2] += 4
    read[5] += 4
    np.testing.assert_allclose(total[channels.out["0"]], made.detach(), rtol=1e-5)
    np.testing.assert_allclose(total[channels.out["1"]], read.detach(), rtol=1e-5)


def test_a_group_of_zeros_costs_nothing_and_divides_nothing_by_zero(small):
    channels = trace(small)
    for layer in ("cv1.conv", "cv1.bn", "cv2.conv"):
        small.get_submodule(f"model.2.m.0.{layer}").weight.data.zero_()
    for name in ("l1", "l2", "lamp"):
        assert (criteria.load(name)(small, channels, None)[channels.out[HIDDEN]] == 0).all()


def test_lamp_is_the_share_of_what_would_be_left(small):
    channels = trace(small)
    scores = criteria.load("lamp")(small, channels, None)
    squares = sums(small, channels, torch.square)
    for group in channels.groups:
        values = squares[group.atoms]
        expected = [v / values[values >= v].sum() for v in values]  # no two are equal here
        np.testing.assert_allclose(scores[group.atoms], expected, rtol=1e-9)


def test_percentile_removes_what_one_threshold_over_all_gammas_would(small):
    channels = trace(small)
    gamma = criteria.load("bn_scale")(small, channels, None)
    scores = criteria.load("percentile")(small, channels, None)
    free = np.concatenate([g.atoms for g in channels.groups if not g.frozen])
    for count in (len(free) // 10, len(free) // 3, len(free) * 2 // 3):
        threshold = np.sort(gamma[free])[count]
        cheapest = np.argsort(scores[free], kind="stable")[:count]
        np.testing.assert_array_equal(np.sort(cheapest), np.flatnonzero(gamma[free] < threshold))
    assert np.isinf(scores[np.isinf(gamma)]).all()


def test_random_is_the_same_draw_every_time(small):
    channels = trace(small)
    first, second = (criteria.load("random")(small, channels, None) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.random.seed(7)  # what others do with the global generator is no matter
    np.testing.assert_array_equal(first, criteria.load("random")(small, channels, None))


# -- the loss --------------------------------------------------------------------------------------------------------
class Frozen(torch.nn.Module):
    """The loss assigns boxes to anchors anew at each call, outside of the gradient: here the first assignment stays."""

    def __init__(self, assigner):
        super().__init__()
        self.assigner, self.first = assigner, None

    def forward(self, *args):
        self.first = self.first or self.assigner(*args)
        return self.first


def losses(models, pictures):
    """Of all pictures as one batch, in float64, under the assignment of the first model."""
    batch = {k: v.double() for k, v in pictures.batch(0, len(pictures.pictures)).items()}
    torch.set_default_dtype(torch.float64)  # Ultralytics' loss makes tensors of the default type
    found, assigner = [], None
    try:
        for model in models:
            model.args = DEFAULT_CFG
            model.criterion = model.init_criterion()
            assigner = model.criterion.assigner = assigner or Frozen(model.criterion.assigner)
            with torch.no_grad():
                found.append(float(model.eval().loss(batch)[0].sum()))
    finally:
        torch.set_default_dtype(torch.float32)
    return found


def scale(model, channels, atom, factor):
    """Every slice of the atom, in place: filters, norm scales and shifts, biases, the readers' columns."""
    for name, atoms in channels.out.items():
        for parameter in model.get_submodule(name).parameters(recurse=False):
            parameter.data[atoms == atom] *= factor
    for name, atoms in channels.inp.items():
        model.get_submodule(name).weight.data[:, atoms == atom] *= factor


@pytest.mark.parametrize("layer", [HIDDEN, "model.2.m.0.cv2.conv", "model.22.cv3.0.0.conv"])
def test_taylor_agrees_with_a_finite_difference_of_the_loss(layer, small):
    """Scaling all slices of an atom by 1 + t changes the loss by t * score, for t near 0."""
    channels, pictures, step = trace(small), samples(), 1e-5
    assert len(pictures.pictures) <= AT_ONCE  # one batch: the absolute value is of the whole
    scores = criteria.load("taylor")(small, channels, pictures)
    for atom in channels.out[layer][:3]:
        less, more = copy.deepcopy(small).double(), copy.deepcopy(small).double()
        scale(less, channels, atom, 1 - step)
        scale(more, channels, atom, 1 + step)
        _, low, high = losses([copy.deepcopy(small).double(), less, more], pictures)
        slope = abs(high - low) / (2 * step) / len(pictures.pictures)
        assert scores[atom] == pytest.approx(slope, rel=1e-2)


def test_taylor_of_a_channel_that_nobody_reads_is_nothing(small):
    channels = trace(small)
    small.get_submodule("model.2.m.0.cv2.conv").weight.data[:, 5] = 0
    scores = criteria.load("taylor")(small, channels, samples())[channels.out[HIDDEN]]
    assert scores[5] == 0 and np.sort(scores)[1] > 0


def test_taylor_takes_the_mean_of_absolute_values_over_batches(small):
    """Two batches whose changes cancel would call a channel free that each of them needs."""
    channels, pictures = trace(small), samples(count=2 * AT_ONCE)
    other = Samples(torch.flip(pictures.pictures, [3]), pictures.labels)
    both = Samples(torch.cat([pictures.pictures[:AT_ONCE], other.pictures[:AT_ONCE]]), pictures.labels[:AT_ONCE] * 2)
    halves = [
        criteria.load("taylor")(small, channels, Samples(both.pictures[i : i + AT_ONCE], both.labels[:AT_ONCE]))
        for i in (0, AT_ONCE)
    ]
    np.testing.assert_allclose(criteria.load("taylor")(small, channels, both), np.mean(halves, axis=0), rtol=1e-5)


# -- batch-norm scales -----------------------------------------------------------------------------------------------
def test_bn_scale_is_the_mean_gamma_of_the_norms_that_scale_an_atom(small):
    channels = trace(small)
    scores = criteria.load("bn_scale")(small, channels, None)
    gamma = small.get_submodule("model.0.bn").weight.detach().abs()
    np.testing.assert_allclose(scores[channels.out["model.0.bn"]], gamma.numpy(), rtol=1e-6)
    first = small.get_submodule("model.2.cv1.bn").weight.detach().abs()
    second = small.get_submodule("model.2.m.0.cv2.bn").weight.detach().abs()
    half = len(second)
    np.testing.assert_allclose(
        scores[channels.out["model.2.m.0.cv2.bn"]], ((first[half:] + second) / 2).numpy(), rtol=1e-6
    )


# -- energy ----------------------------------------------------------------------------------------------------------
def group_scores(model, layer):
    channels = trace(model)
    scores = criteria.load("energy")(model, channels, samples())
    return scores[channels.out[layer]], scores, channels


def test_energy_gives_a_finite_cost_to_all_that_can_go(small):
    _, scores, channels = group_scores(small, "model.0.conv")
    free = np.concatenate([g.atoms for g in channels.groups if not g.frozen])
    assert np.isfinite(scores[free]).all() and (scores[free] >= 0).all()
    frozen = np.concatenate([g.atoms for g in channels.groups if g.frozen])
    assert np.isinf(scores[frozen]).all()


def test_energy_takes_a_channel_that_nobody_reads_first(small):
    reader = small.get_submodule("model.2.m.0.cv2.conv")
    reader.weight.data[:, 5] = 0
    scores, _, _ = group_scores(small, "model.2.m.0.cv1.conv")
    assert scores.argmin() == 5 and scores[5] < 1e-6 * np.sort(scores)[1]


def test_energy_knows_that_a_twin_can_stand_in(small):
    """Channels 2 and 6 carry the same signal: the first of them to go costs next to nothing, though both are read.
    Magnitude and output energy without repair would call both dear."""
    conv, norm = small.get_submodule("model.2.m.0.cv1.conv"), small.get_submodule("model.2.m.0.cv1.bn")
    conv.weight.data[6] = conv.weight.data[2]
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor[6] = tensor[2]
    scores, _, _ = group_scores(small, "model.2.m.0.cv1.conv")
    assert int(scores.argmin()) in (2, 6)
    assert scores.min() < 0.05 * np.median(scores)
    # Only one of the two: once its twin has gone, the other has nobody to stand in for it.
    assert max(scores[2], scores[6]) > 5 * min(scores[2], scores[6])


def test_moments_are_those_of_the_whole_map(small):
    """Sampled patches against the full unfold."""
    pictures = samples().pictures
    name = "model.0.conv"
    layer = small.get_submodule(name)
    x = torch.nn.functional.unfold(pictures, 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1)
    full = torch.cov(x.T, correction=0).double()
    found = moments(small, pictures, [name])[name]
    assert found.rows > 1000 and layer.in_channels == 3
    assert float((found.gram - full).abs().max()) < 0.1 * float(full.diagonal().mean())
