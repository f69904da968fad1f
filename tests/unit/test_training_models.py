import pytest
import torch

from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.training.models import build_model


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet18"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 5, 3)])
def test_pictures_become_one_logit_per_class(name, shape):
    model = build_model(name, {}, shape, 7).eval()
    assert model(torch.randn(2, *shape)).shape == (2, 7)


def test_resnet18_has_its_known_size():
    assert sum(p.numel() for p in build_model("resnet18", {}, (3, 32, 32), 10).parameters()) == 11_173_962
    # 11,689,512 is torchvision's, with the large stem.
    large = build_model("resnet18", {}, (3, 224, 224), 1000).eval()
    assert sum(p.numel() for p in large.parameters()) == 11_689_512
    with torch.no_grad():
        assert large(torch.randn(1, 3, 224, 224)).shape == (1, 1000)


def test_transformer_does_not_look_ahead():
    model = build_model("transformer", {"layers": 2, "width": 32}, (12,), 50).eval()
    tokens = torch.randint(0, 50, (2, 12))
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 50
    before, after = model(tokens), model(changed)
    assert before.shape == (2, 12, 50)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


@pytest.mark.parametrize(
    ("name", "options", "shape", "field", "says"),
    [
        ("cnn", {}, (4,), "model", 'model="mlp"'),
        ("resnet18", {}, (4,), "model", "needs pictures"),
        ("mlp", {"hiden": [3]}, (4,), "model_options.hiden", "did you mean 'hidden'"),
        ("resnet18", {"depth": 3}, (3, 8, 8), "model_options.depth", "It takes none"),
        ("mlp", {"hidden": "wide"}, (4,), "model", "cannot be built"),
        ("mlp", {"hidden": [-1]}, (4,), "model", "cannot be built"),
        ("transformer", {"heads": 0}, (4,), "model", "cannot be built"),
        ("transformer", {"width": 10, "heads": 4}, (8,), "model", "multiple of model_options.heads"),
    ],
)
def test_a_model_that_cannot_be_built_says_why(name, options, shape, field, says):
    with pytest.raises(InvalidJob) as caught:
        build_model(name, options, shape, 3)
    assert caught.value.field == field
    assert says in str(caught.value)
