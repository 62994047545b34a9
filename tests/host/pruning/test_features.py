"""features: moments of the layers' inputs."""

import pytest
import torch

from edgeprune.model import head
from edgeprune.pruning.features import default_loss, moments, sensitivity

from ..small import network
from .samples import samples


@pytest.fixture
def small():
    return network(width=0.125)


def test_sampled_moments_approximate_the_whole_map(small):
    """The reference is the full unfold."""
    pictures = samples().pictures
    name = "model.0.conv"
    layer = small.get_submodule(name)
    x = torch.nn.functional.unfold(pictures, 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1)
    full = torch.cov(x.T, correction=0).double()
    moment = moments(small, pictures, [name])[name]
    assert moment.rows > 1000 and layer.in_channels == 3
    assert float((moment.gram - full).abs().max()) < 0.1 * float(full.diagonal().mean())


@pytest.mark.parametrize("which", head.HEADS)
def test_the_loss_is_that_of_the_exported_head_alone(which):
    model = network("yolo26n.yaml", width=0.125)
    head.select(model, which)
    batch = samples().batch(0, 2)
    with torch.no_grad(), default_loss(model) as loss:
        value, criterion = loss(batch), model.criterion
        outputs = model(batch["img"])[1]
        own = {"one-to-one": criterion.one2one.loss(outputs["one2one"], batch)[0].sum(),
               "one-to-many": criterion.one2many.loss(outputs["one2many"], batch)[0].sum()}  # fmt: skip
    assert own["one-to-one"] > 0 < own["one-to-many"] and abs(own["one-to-one"] - own["one-to-many"]) > 1e-2
    assert float(value) == pytest.approx(float(own[which]), rel=1e-5)
    assert model.criterion is None


@pytest.mark.parametrize("which", head.HEADS)
def test_the_loss_does_not_depend_on_the_head_that_is_not_exported(which):
    model = network("yolo26n.yaml", width=0.125)
    head.select(model, which)
    one, many = "model.23.one2one_cv3.0.1.1.conv", "model.23.cv3.0.1.1.conv"
    felt = sensitivity(model, samples(), [one, many, "model.16.cv2.conv"])
    used, unused = (one, many) if which == head.ONE_TO_ONE else (many, one)
    assert felt[used].sum() > 0 and felt["model.16.cv2.conv"].sum() > 0 and felt[unused].sum() == 0
