"""The discriminator's spectral norms."""

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from students.critic import SpectralLinear


def test_one_power_iteration_in_the_first_pass_after_a_refresh():
    torch.manual_seed(0)
    layer, x = SpectralLinear(6, 5), torch.randn(3, 6)
    with torch.no_grad():
        layer.weight.add_(torch.randn(5, 6))
    start = layer.direction.clone()
    layer.refresh()
    assert torch.equal(layer.direction, start)  # nothing is read outside a pass
    w = layer.weight.detach()
    once = functional.normalize(w.T @ (w @ start), dim=0)
    out = layer(x)
    torch.testing.assert_close(layer.direction, once)
    torch.testing.assert_close(out, functional.linear(x, w / (w @ once).norm(), layer.bias))
    assert torch.equal(layer(x), out)
    assert torch.equal(layer.direction, once)


def test_recomputing_a_pass_does_not_iterate_again():
    torch.manual_seed(0)
    layer, x = SpectralLinear(6, 5), torch.randn(3, 6, requires_grad=True)
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    gradients = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        layer.load_state_dict(state)
        layer.zero_grad()
        layer.refresh()
        run(x).square().sum().backward()
        gradients.append((layer.weight.grad.clone(), layer.direction.clone()))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])
    assert not torch.equal(gradients[0][1], state["direction"])
