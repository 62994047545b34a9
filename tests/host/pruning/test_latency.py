"""latency: a cost model from the times of random architectures predicts the times of others."""

import numpy as np
import onnx
import pytest
from edgeprune_device.errors import InputError

from edgeprune.model import head
from edgeprune.pruning import budget, latency
from edgeprune.pruning import cost as costs
from edgeprune.pruning.budget import Budget
from edgeprune.pruning.channels import trace
from edgeprune.pruning.prune import trace_channels

from ..small import network

SIZE = 64


class Counting:
    """A runtime with known times per multiply-accumulate of a 1 x 1 and of a 3 x 3 convolution, per value written
    and per file, computed from the files. noise: the relative noise of each file.
    """

    description = "counted"

    def __init__(self, noise=0.0):
        self.noise, self.files = np.random.default_rng(0).normal(1, noise, 1000), {}

    def __call__(self, files):
        self.files = files
        return {name: self.time(file) * self.noise[i] for i, (name, file) in enumerate(files.items())}

    def time(self, file):
        graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(file)).graph
        weights = {t.name: t.dims for t in graph.initializer}
        shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.value_info}
        total = 20.0
        for node in graph.node:
            if node.op_type == "Conv":
                (_, made, height, width), (_, read, kh, kw) = shapes[node.output[0]], weights[node.input[1]]
                total += 1e-6 * height * width * made * read * kh * kw * (2 if kh == 1 else 1)
                total += 1e-4 * height * width * made
        return total


@pytest.fixture(scope="module")
def counted(nano):
    clock = Counting()
    return clock, latency.fit(*nano, SIZE, architectures=12, multiple=4, measure=clock)


def test_the_fit_recovers_a_runtime_of_known_cost(nano, counted):
    clock, fitted = counted
    assert fitted.architectures == len(clock.files) == 13
    assert fitted.runtime == "counted"
    assert fitted.full_ms == clock.time(next(iter(clock.files.values())))
    assert fitted.error_p90 < 1e-3
    assert fitted.coefficients["macs_1x1"] == pytest.approx(2 * fitted.coefficients["macs_kxk"], rel=0.02)
    assert fitted.coefficients["read"] == pytest.approx(0, abs=0.02 * fitted.coefficients["written"])
    assert fitted.coefficients["fixed"] == pytest.approx(20, rel=0.02)


def test_other_architectures_are_predicted(nano, counted):
    model, channels = nano
    clock, fitted = counted
    other = latency.sample(channels, 6, multiple=4, seed=7)
    measured = [clock.time(latency.onnx(model, channels, counts, SIZE)) for counts in other]
    assert fitted.cost(channels).of(other) == pytest.approx(measured, rel=1e-3)
    assert np.ptp(measured) > 0.1 * max(measured)


def test_the_cost_model_also_fits_a_pruned_network(nano, counted):
    """Its groups differ, because `--steps` traces it again."""
    from edgeprune.pruning import surgery
    from edgeprune.pruning.plan import PrunePlan

    model, channels = nano
    _, fitted = counted
    counts = latency.sample(channels, 1, multiple=4, seed=3)[1]
    keep = np.concatenate([np.arange(len(g.atoms)) < n for g, n in zip(channels.groups, counts)])
    mask = np.empty(channels.atoms, dtype=bool)
    mask[np.concatenate([g.atoms for g in channels.groups])] = keep
    cut = trace(surgery.apply(PrunePlan.of(channels, mask, budget="", criterion=""), model, channels))
    whole = np.array([len(g.atoms) for g in cut.groups], dtype=float)
    assert fitted.cost(cut).of(whole) == pytest.approx(fitted.cost(channels).of(counts))
    assert fitted.cost(cut).of(whole) < 0.99 * fitted.full_ms


def test_the_error_is_measured_on_held_out_architectures(nano):
    """Meaningless times are not predicted, however good the fit to them looks."""
    assert latency.fit(*nano, SIZE, architectures=12, multiple=4, measure=Counting(noise=0.3)).error_median > 0.1


def test_a_budget_is_solved_with_it(nano, counted):
    model, channels = nano
    clock, fitted = counted
    scores = np.random.default_rng(0).random(channels.atoms)
    keep = budget.choose(channels, scores, Budget("latency", 0.8), multiple=4, cost=fitted.cost(channels))
    counts = np.array([keep[g.atoms].sum() for g in channels.groups])
    assert 0.78 < clock.time(latency.onnx(model, channels, counts, SIZE)) / fitted.full_ms <= 0.8


def test_the_architectures_are_diverse(nano):
    _, channels = nano
    counts = latency.sample(channels, 15, multiple=4)
    sizes = np.array([len(g.atoms) for g in channels.groups])
    assert (counts[0] == sizes).all()
    assert len(np.unique(counts, axis=0)) == 16
    assert (counts >= budget.FLOOR * sizes).all()
    assert all((counts[:, i] == n).all() for i, (g, n) in enumerate(zip(channels.groups, sizes)) if g.frozen)
    for tie in channels.ties:
        assert (counts[:, tie] == counts[:, tie[:1]]).all()
    shares = costs.macs(channels).of(counts)[1:] / costs.macs(channels).of(sizes)
    assert shares.min() < 0.5 and shares.max() > 0.75


@pytest.mark.parametrize("which", head.HEADS)
def test_a_branch_that_the_export_drops_costs_nothing(which):
    model = network("yolov10n.yaml", width=0.125)
    head.select(model, which)
    clock = Counting()
    channels = trace_channels(model, SIZE)
    fitted = latency.fit(model, channels, SIZE, architectures=12, multiple=4, measure=clock)
    one_to_one = which == head.ONE_TO_ONE
    assert fitted.unused and {"one2one" in name for name in fitted.unused} == {not one_to_one}
    assert channels.idle > set(fitted.unused)  # which also names the norms
    assert fitted.error_p90 < 0.02


def test_milliseconds_become_a_budget(counted):
    _, fitted = counted
    assert latency.to_budget(fitted, 0.5 * fitted.full_ms) == Budget("latency", 0.5)
    with pytest.raises(InputError, match="nothing to prune"):
        latency.to_budget(fitted, fitted.full_ms)
    for nothing in (0.0, float("nan")):
        with pytest.raises(InputError, match="invalid value"):
            latency.to_budget(fitted, nothing)


def test_nonnegative_least_squares():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.normal(size=(20, 5)), rng.normal(size=20)
        x = latency._nnls(a, b)
        gradient = a.T @ (a @ x - b)  # the conditions of Karush, Kuhn and Tucker
        assert (x >= 0).all() and (gradient >= -1e-9).all() and gradient @ x == pytest.approx(0, abs=1e-9)
