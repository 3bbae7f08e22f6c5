"""Tools that take timm's backbones by name, with every name of the package: they work, or say what would."""

from collections import OrderedDict

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import transformers
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from transformers.models.detr.modeling_detr import replace_batch_norm
from zoo import (
    FIXED,
    close,
    create,
    every_family,
    every_fixed,
    every_kind,
    every_staged_family,
    every_staged_kind,
    image,
    own_image,
    sizes,
)

from timm_mobilevit_zoo import hub

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

LABELS, WIDTH = 3, 32
DETR = dict(d_model=WIDTH, num_queries=4, num_labels=LABELS)
DETR |= {f"{part}_{key}": n for part in ("encoder", "decoder") for key, n in (("layers", 1), ("attention_heads", 2))}
DETR |= dict(encoder_ffn_dim=WIDTH, decoder_ffn_dim=WIDTH)


def even_image(name, **kwargs):
    """An image whose sides a decoder that doubles maps can put together again."""
    return own_image(name, **kwargs) if name in FIXED else image(64, 96, **kwargs)


def learns(model, backbone, compute):
    """One optimiser step, after which each weight of the backbone has a finite gradient and one at least has moved."""
    model.train()
    before = [p.detach().clone() for p in backbone.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss = compute()
    assert torch.isfinite(loss)
    loss.backward()
    trained = [(n, p) for n, p in backbone.named_parameters() if p.requires_grad]
    assert trained
    assert not [n for n, p in trained if p.grad is None], "parameters that the client does not use"
    assert all(torch.isfinite(p.grad).all() for _, p in trained)
    optimizer.step()
    assert not all(torch.equal(a, b) for a, b in zip(before, backbone.parameters(), strict=True))
    model.eval()


def same_weights(ours, theirs):
    """Bit for bit. What comes out may differ in the last: the layout in memory of loaded weights is another."""
    weights = ours.state_dict()
    assert weights.keys() == theirs.state_dict().keys()
    assert all(torch.equal(weights[key], value) for key, value in theirs.state_dict().items())


def num_levels(name):
    return len(create(name, device="meta").feature_info)


# segmentation-models-pytorch


def unet(name, depth, **kwargs):
    kwargs = dict(decoder_channels=(16, 16, 8, 8, 8)[:depth], encoder_weights=None, classes=LABELS) | kwargs
    return smp.Unet(f"tu-{name}", encoder_depth=depth, **kwargs).eval()


def fpn(name, depth, **kwargs):
    kwargs |= dict(decoder_pyramid_channels=WIDTH, decoder_segmentation_channels=WIDTH, upsampling=2 ** (depth - 3))
    return smp.FPN(f"tu-{name}", encoder_depth=depth, encoder_weights=None, classes=LABELS, **kwargs).eval()


def deeplab(name, depth, **kwargs):
    kwargs |= dict(encoder_weights=None, classes=LABELS, decoder_channels=16)
    return smp.DeepLabV3Plus(f"tu-{name}", encoder_depth=depth, **kwargs).eval()


def segments(model, x):
    masks = model(x)
    assert masks.shape == (len(x), LABELS, *x.shape[2:])
    learns(model, model.encoder, lambda: model(x).square().mean())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(x)).all()


@every_staged_kind
@pytest.mark.parametrize("build", [unet, fpn, deeplab])
@pytest.mark.parametrize(("depth", "in_channels"), [(3, 4), (4, 1), (5, 1), (5, 4)])
def test_smp(name, build, depth, in_channels):
    model, x = build(name, depth, in_channels=in_channels), even_image(name, chans=in_channels)
    if build is fpn and depth < 5 and create(name, device="meta").feature_info[0]["reduction"] == 4:
        with pytest.raises(RuntimeError, match="size of tensor"):  # smp's map at stride 2 has 0 channels there
            model(x)
        return
    segments(model, x)


@every_staged_kind
@pytest.mark.parametrize("output_stride", [8, 16])
def test_smp_dilated(name, output_stride):
    model = deeplab(name, 5, encoder_output_stride=output_stride)
    whole, x = create(name, output_stride=output_stride), image(75, 101)
    model.encoder.model.load_state_dict(whole.state_dict(), strict=False)
    levels = whole.forward_intermediates(x, intermediates_only=True)
    for level, expected in zip(model.encoder(x)[-len(levels) :], levels, strict=True):
        close(level, expected)
    segments(model, even_image(name))


@every_staged_kind
def test_smp_of_an_odd_image(name):
    model, whole, x = unet(name, 5), create(name), image(75, 101)
    model.encoder.model.load_state_dict(whole.state_dict(), strict=False)
    levels = whole.forward_intermediates(x, intermediates_only=True)
    for level, expected in zip(model.encoder(x)[-len(levels) :], levels, strict=True):
        close(level, expected)
    segments(model, x)


@every_fixed
def test_smp_of_a_fixed_size(name):
    info, x = create(name, device="meta").feature_info, own_image(name, chans=4)
    if [level["reduction"] for level in info] == [2 ** (i + 1) for i in range(len(info))]:
        segments(unet(name, len(info), in_channels=4), x)
        with pytest.raises(ValueError, match=f"{name} has {len(info)} levels; choose from 0 to"):
            unet(name, 5)
        with pytest.raises(ValueError, match=r"output_stride=16: .* cannot be dilated; omit it"):
            deeplab(name, len(info))
        return
    with pytest.raises(ValueError, match="Unsupported model downsampling pattern"):
        unet(name, 5)
    decoder = dict(decoder_intermediate_channels=(8, 8, 8, 8), decoder_fusion_channels=8)
    model = smp.DPT(f"tu-{name}", encoder_weights=None, in_channels=4, classes=LABELS, **decoder).eval()
    model.encoder.model.prune_intermediate_layers([-1], prune_norm=True)  # smp keeps the classifier
    segments(model, x)


# transformers


def timm_backbone(name, **kwargs):
    config = transformers.TimmBackboneConfig(backbone=name, use_pretrained_backbone=False, **kwargs)
    return transformers.TimmBackbone(config).eval()


def client(model_cls, name, indices, **kwargs):
    config = transformers.TimmBackboneConfig(backbone=name, use_pretrained_backbone=False, out_indices=indices)
    more = dict(use_timm_backbone=False, use_pretrained_backbone=False, backbone=None) if model_cls in OLD else {}
    torch.manual_seed(0)
    return model_cls(model_cls.config_class(backbone_config=config, **more, **kwargs)).eval()


OLD = (transformers.DetrForObjectDetection,)  # which before transformers 5 build timm's network themselves by default


def body(model):
    return next(m for m in model.modules() if hasattr(m, "feature_info"))


def answers(model, x, **kwargs):
    output = model(pixel_values=x, **kwargs)
    return output.logits if "logits" in output else output.masks_queries_logits


@every_family
def test_transformers_backbone(name):
    x, count, whole = own_image(name), num_levels(name), create(name)
    levels = whole.forward_intermediates(x, intermediates_only=True)
    for indices in (None, [-1], [-2, -1], [0, 2], list(range(count))):
        torch.manual_seed(0)
        backbone = timm_backbone(name, **({} if indices is None else {"out_indices": indices}))
        taken = [i % count for i in indices or [-1]]
        channels = [whole.feature_info[i]["num_chs"] for i in taken]
        assert [i % count for i in backbone.out_indices] == taken
        assert backbone.out_features == [whole.feature_info[i]["module"] for i in taken]
        assert backbone.channels == channels
        maps = backbone(x).feature_maps
        assert [m.shape for m in maps] == [(2, c, *m.shape[2:]) for m, c in zip(maps, channels, strict=True)]
    prefix = "model." if any(key.startswith("model.") for key in body(backbone).state_dict()) else ""
    weights = {prefix + key: value for key, value in whole.state_dict().items()}
    assert not body(backbone).load_state_dict(weights, strict=False).missing_keys
    output = backbone(x, output_hidden_states=True)
    assert len(output.hidden_states) == len(output.feature_maps) == count
    for level, expected in zip(output.feature_maps, levels, strict=True):
        close(level if level.shape == expected.shape else level.permute(0, 2, 3, 1), expected)
    learns(backbone, backbone, lambda: sum(m.square().mean() for m in backbone(x).feature_maps))


@every_staged_family
def test_transformers_hidden_states(name):
    backbone = timm_backbone(name, out_indices=[0, -1])
    output = backbone(own_image(name), output_hidden_states=True)
    assert len(output.hidden_states) == len(backbone.stage_names) == num_levels(name)
    assert torch.equal(output.feature_maps[0], output.hidden_states[0])
    assert torch.equal(output.feature_maps[1], output.hidden_states[-1])


@every_kind
def test_transformers_wrapper(name, tmp_path):
    model, x = create(name, num_classes=LABELS), own_image(name)
    hub.export(model, tmp_path / "weights", card={"license": "apache-2.0"})
    wrapper = transformers.TimmWrapperForImageClassification.from_pretrained(tmp_path / "weights").eval()
    same_weights(wrapper.timm_model, model)
    close(wrapper(x).logits, model(x))
    headless = transformers.TimmWrapperModel.from_pretrained(tmp_path / "weights").eval()
    assert len(headless(x, output_hidden_states=True).hidden_states) == num_levels(name)
    learns(wrapper, wrapper, lambda: wrapper(x, labels=torch.tensor([0, 1])).loss)
    wrapper.save_pretrained(tmp_path / "trained")
    again = transformers.TimmWrapperForImageClassification.from_pretrained(tmp_path / "trained").eval()
    same_weights(again, wrapper)
    close(again(x).logits, wrapper(x).logits)
    half = transformers.TimmWrapperForImageClassification.from_pretrained(
        tmp_path / "trained", torch_dtype=torch.bfloat16
    )
    close(half.eval()(x.bfloat16()).logits.float(), wrapper(x).logits, 0.1)


@every_family
def test_detr_freezes_the_norms(name):
    model, x = create(name), own_image(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    expected = model(x)
    with torch.no_grad():
        replace_batch_norm(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    close(model(x), expected, 1e-4)


@every_kind
def test_detr(name):
    model = client(transformers.DetrForObjectDetection, name, [-1], **DETR)
    for size in sizes(name):
        assert answers(model, image(*size)).shape == (2, 4, LABELS + 1)
    x = own_image(name)
    learns(model, body(model), lambda: answers(model, x).square().mean())
    assert torch.isfinite(answers(model.bfloat16(), x.bfloat16())).all()


@every_kind
def test_detr_reloads(name, tmp_path):
    model, x = client(transformers.DetrForObjectDetection, name, [-1], **DETR), own_image(name)
    model.save_pretrained(tmp_path)
    again = transformers.DetrForObjectDetection.from_pretrained(tmp_path).eval()
    same_weights(again, model)
    network, refilled = body(model), int(transformers.__version__.split(".")[0]) < 5
    # transformers 5 leaves garbage in buffers that are not saved, such as the tables of timm's Swin.
    if refilled or {key for key, _ in network.named_buffers()} <= network.state_dict().keys():
        close(answers(again, x), answers(model, x))


@every_family
def test_detr_wants_a_level_too_many(name):
    count = num_levels(name)
    with pytest.raises(ValueError, match=f"{name} has {count} levels; choose from 0 to {count - 1}"):
        client(transformers.DetrForObjectDetection, name, [1, 2, count], **DETR)


@every_kind
def test_upernet(name, tmp_path):
    indices = list(range(num_levels(name)))[-4:]
    heads = dict(hidden_size=WIDTH, auxiliary_channels=8, use_auxiliary_head=len(indices) > 2, num_labels=LABELS)
    if len(indices) > 2:
        heads["auxiliary_in_channels"] = create(name, device="meta").feature_info[indices[2]]["num_chs"]
    model = client(transformers.UperNetForSemanticSegmentation, name, indices, **heads)
    for size in sizes(name):
        assert answers(model, image(*size)).shape == (2, LABELS, *size)
    x = own_image(name)
    labels = torch.zeros(2, *x.shape[2:], dtype=torch.long)
    learns(model, body(model), lambda: model(pixel_values=x, labels=labels).loss)
    model.save_pretrained(tmp_path)
    again = transformers.UperNetForSemanticSegmentation.from_pretrained(tmp_path).eval()
    same_weights(again, model)
    close(answers(again, x), answers(model, x))


@every_staged_kind
def test_mask2former(name):
    model = client(
        transformers.Mask2FormerForUniversalSegmentation,
        name,
        list(range(num_levels(name)))[-4:],
        **dict(feature_size=WIDTH, mask_feature_size=WIDTH, hidden_dim=WIDTH, encoder_feedforward_dim=WIDTH),
        **dict(encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=WIDTH, num_queries=4),
        num_labels=LABELS,
        train_num_points=16,
    )
    for size in sizes(name):
        assert answers(model, image(*size)).shape[:2] == (2, 4)
    x = even_image(name)
    masks = [torch.ones(1, *x.shape[2:])] * 2
    classes = [torch.tensor([1])] * 2
    learns(model, body(model), lambda: model(pixel_values=x, mask_labels=masks, class_labels=classes).loss)


@every_staged_kind
def test_rt_detr(name):
    channels = [level["num_chs"] for level in create(name, device="meta").feature_info][-3:]
    model = client(
        transformers.RTDetrForObjectDetection,
        name,
        list(range(num_levels(name)))[-3:],
        **dict(encoder_in_channels=channels, encoder_hidden_dim=WIDTH, decoder_in_channels=3 * [WIDTH], d_model=WIDTH),
        **dict(encoder_ffn_dim=WIDTH, decoder_ffn_dim=WIDTH, encoder_attention_heads=2, decoder_attention_heads=2),
        **dict(decoder_layers=2, num_queries=4, num_denoising=0, num_labels=LABELS),
    )
    x = even_image(name)
    assert answers(model, x).shape == (2, 4, LABELS)
    learns(model, body(model), lambda: answers(model, x).square().mean())


# torchvision


class Neck(nn.Module):
    def __init__(self, name, out_indices):
        super().__init__()
        self.body = timm.create_model(name, features_only=True, out_indices=out_indices)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), WIDTH)
        self.out_channels = WIDTH

    def forward(self, x):
        return self.fpn(OrderedDict((str(i), level) for i, level in enumerate(self.body(x))))


@every_kind
@pytest.mark.parametrize("detector", [RetinaNet, FasterRCNN])
def test_torchvision_detectors(name, detector):
    torch.manual_seed(0)
    count = min(num_levels(name), 4)
    anchors = AnchorGenerator(tuple((8 * 2**i,) for i in range(count)), count * ((1.0,),))
    (shape, *others), small = sizes(name), 32 if name in FIXED else 64
    resize = dict(min_size=small, max_size=2 * small if others else small)
    if detector is RetinaNet:
        model = RetinaNet(Neck(name, count), LABELS, anchor_generator=anchors, **resize)
    else:
        parts = dict(box_head=TwoMLPHead(9 * WIDTH, WIDTH), box_predictor=FastRCNNPredictor(WIDTH, LABELS))
        pool = MultiScaleRoIAlign([str(i) for i in range(count)], 3, 2)
        parts |= dict(rpn_anchor_generator=anchors, box_roi_pool=pool)
        model = FasterRCNN(Neck(name, count), **parts, **resize)
    images = [image(*size, batch=1)[0] for size in (shape, *others)]
    boxes = [{"boxes": torch.tensor([[2.0, 2.0, 28.0, 28.0]]), "labels": torch.tensor([1])} for _ in images]
    assert len(model.eval()(images)) == len(images)
    learns(model, model.backbone, lambda: sum(model(images, boxes).values()))


# Explanations


@every_staged_kind
def test_captum_heat_map(name):
    model, x = create(name, num_classes=5), image(75, 101)
    cells = LayerGradCam(model, model.stage4).attribute(x, target=1)
    heat = LayerAttribution.interpolate(cells, x.shape[2:], interpolate_mode="bilinear")
    assert heat.shape == (2, 1, 75, 101)
    assert heat.std() > 0


@every_kind
def test_captum_pixels(name):
    model, x = create(name, num_classes=5), own_image(name)
    pixels = IntegratedGradients(model).attribute(x, target=1, n_steps=3)
    assert pixels.shape == x.shape
    assert pixels.std() > 0
