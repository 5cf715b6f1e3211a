"""Sixty-two models as people bring them: torchvision, timm, Hugging Face and three of our own, small, from configs.

Each has the code paths of its full size, fewer layers and channels, and its dropout and drop path.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from model_zoo_own import VOCABULARY, LSTMClassifier, TransformerClassifier, UNet


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Args:
        name: of the configuration.
        build: returns the model, with random weights.
        example: returns inputs for (batch, length): a tensor, a tuple or a dict, as the model takes them.
        lengths: the model takes sequences of other lengths than the example's.
        min_batch: of training, where BatchNorm sees one value per channel.
        run_once: the model fills buffers in its first forward pass, which it must have behind it.
        frozen: name of a parameter that does not train.
    """

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[int, int], Any]
    lengths: bool = False
    min_batch: int = 1
    run_once: bool = False
    frozen: str | None = None

    def make(self) -> nn.Module:
        """Return the model with the weights of seed 0; the random state stays as it was."""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of timm and transformers, about their own code
            torch.manual_seed(0)
            model = self.build()
            if self.frozen is not None:
                model.get_parameter(self.frozen).requires_grad_(False)
            if self.run_once:
                with torch.no_grad():
                    model.eval()(self.example(2, 0))
                model.train()
            return model


def images(size: int, name: str | None = None) -> Callable[[int, int], Any]:
    """Return an example of images of (batch, 3, size, size), under a name in a dict if one is given."""

    def example(batch: int, length: int) -> Any:
        x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))
        return x if name is None else {name: x}

    return example


def tokens(*, mask: bool, as_dict: bool = True, decoder: bool = False) -> Callable[[int, int], Any]:
    """Return an example of token ids of (batch, length), with a mask that ends every second row early."""

    def example(batch: int, length: int) -> Any:
        generator = torch.Generator().manual_seed(batch)
        ids = torch.randint(2, VOCABULARY, (batch, length), generator=generator)
        if not as_dict:
            return ids
        given = {"input_ids": ids}
        if mask:
            given["attention_mask"] = torch.ones_like(ids)
            given["attention_mask"][1::2, length - 2 :] = 0
        if decoder:
            given["decoder_input_ids"] = torch.randint(2, VOCABULARY, (batch, length), generator=generator)
        return given

    return example


def _small_vgg(features: nn.Module) -> nn.Module:
    """Return torchvision's VGG with small linear layers: its own have a hundred million weights."""
    from torchvision.models import VGG

    with torch.device("meta"):
        model = VGG(nn.Identity(), init_weights=False)
    model.features = features
    model.classifier = nn.Sequential(
        nn.Linear(64 * 49, 32), nn.ReLU(True), nn.Dropout(0.5), nn.Linear(32, 32), nn.ReLU(True), nn.Linear(32, 10)
    )
    return model


def _torchvision(name: str, size: int, *args: Any, **kwargs: Any) -> Entry:
    """Return an entry for the class that builds `name`, with fewer layers."""

    def build() -> nn.Module:
        import torchvision.models as m

        classes: dict[str, Callable[..., nn.Module]] = {
            "resnet18": lambda: m.ResNet(m.resnet.BasicBlock, [1, 1, 1, 1]),
            "resnet50": lambda: m.ResNet(m.resnet.Bottleneck, [1, 1, 1, 1]),
            "vgg11_bn": lambda: _small_vgg(m.vgg.make_layers([16, "M", 32, "M", 64, 64], batch_norm=True)),
            "mobilenet_v3_small": lambda: m.MobileNetV3(
                [
                    m.mobilenetv3.InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 1.0),
                    m.mobilenetv3.InvertedResidualConfig(16, 3, 48, 24, False, "HS", 1, 1, 1.0),
                    m.mobilenetv3.InvertedResidualConfig(24, 5, 48, 24, True, "HS", 1, 1, 1.0),
                ],
                64,
                num_classes=10,
            ),
            "mobilenet_v2": lambda: m.mobilenet_v2(
                inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2]], num_classes=10
            ),
            "densenet121": lambda: m.DenseNet(8, (2, 2, 2), 16, drop_rate=0.1, num_classes=10),
            "efficientnet_b0": lambda: m.EfficientNet(
                [
                    m.efficientnet.MBConvConfig(1, 3, 1, 32, 16, 1),
                    m.efficientnet.MBConvConfig(6, 3, 2, 16, 24, 2),
                    m.efficientnet.MBConvConfig(6, 5, 2, 24, 40, 2),
                ],
                dropout=0.2,
                num_classes=10,
            ),
            "vit_b_16": lambda: m.VisionTransformer(32, 8, 3, 2, 32, 64, dropout=0.1, num_classes=10),
            "swin_t": lambda: m.SwinTransformer(
                [4, 4], 16, [2, 2], [2, 4], [4, 4], stochastic_depth_prob=0.2, num_classes=10
            ),
            "convnext_tiny": lambda: m.ConvNeXt(
                [m.convnext.CNBlockConfig(16, 32, 2), m.convnext.CNBlockConfig(32, None, 2)],
                stochastic_depth_prob=0.2,
                num_classes=10,
            ),
        }
        return classes[name]()

    return Entry(f"torchvision {name}", build, images(size), *args, **kwargs)


def _timm(name: str, size: int, min_batch: int = 1, run_once: bool = False, **kwargs: Any) -> Entry:
    """Return an entry for timm.create_model(name, ...), with fewer layers."""

    def build() -> nn.Module:
        import timm

        if name == "vgg11_bn":  # its configuration cannot be changed by create_model
            layers = [16, "M", 32, "M", 64, 64]
            return timm.models.VGG(layers, 10, mlp_ratio=0.01, norm_layer=nn.BatchNorm2d, **kwargs)
        if name in ("mixer_s32_224", "resmlp_12_224"):  # likewise
            parts = timm.models.mlp_mixer
            residual = {"block_layer": parts.ResBlock, "norm_layer": parts.Affine, "mlp_ratio": 4}
            blocks = residual if name.startswith("resmlp") else {}
            return parts.MlpMixer(10, img_size=32, patch_size=8, num_blocks=2, embed_dim=32, **blocks, **kwargs)
        return timm.create_model(name, pretrained=False, num_classes=10, **kwargs)

    return Entry(f"timm {name}", build, images(size), min_batch=min_batch, run_once=run_once)


TORCHVISION = [
    _torchvision("resnet18", 64, min_batch=2),
    _torchvision("resnet50", 64, min_batch=2),
    _torchvision("vgg11_bn", 32),
    _torchvision("mobilenet_v2", 32),
    _torchvision("mobilenet_v3_small", 32),
    _torchvision("densenet121", 32),
    _torchvision("efficientnet_b0", 32),
    _torchvision("vit_b_16", 32),
    _torchvision("swin_t", 32),
    _torchvision("convnext_tiny", 32),
]

_DIM = {"embed_dim": 32, "num_heads": 2}
_STAGES = {"depths": (2, 2), "num_heads": (2, 4)}
TIMM = [
    _timm("vgg11_bn", 32, drop_rate=0.1),
    _timm("vit_tiny_patch16_224", 32, img_size=32, patch_size=8, depth=3, drop_path_rate=0.1, **_DIM),
    _timm("deit_tiny_distilled_patch16_224", 32, img_size=32, patch_size=8, depth=3, **_DIM),
    _timm("swin_tiny_patch4_window7_224", 32, img_size=32, window_size=4, **_STAGES, embed_dim=16),
    _timm("levit_128s", 64, 2, img_size=64, embed_dim=(32, 48, 64), depth=(1, 1, 1), num_heads=(2, 3, 4), key_dim=8),
    _timm("davit_tiny", 64, depths=(1, 1), embed_dims=(16, 32), num_heads=(2, 4), drop_path_rate=0.1),
    _timm("mobilevit_xxs", 64),
    _timm(
        "convit_tiny", 32, 1, True, img_size=32, patch_size=8, depth=3, embed_dim=16, num_heads=2, local_up_to_layer=2
    ),
    _timm("crossvit_9_240", 48, img_size=48, img_scale=(1.0, 32 / 48), patch_size=(12, 16), depth=((1, 2, 0),) * 2),
    _timm("twins_svt_small", 64, img_size=64, depths=(1, 2, 2, 1)),
    _timm("efficientformer_l1", 224, depths=(1, 1, 1, 2), embed_dims=(16, 16, 24, 32), num_vit=1),
    _timm("mixer_s32_224", 32, drop_rate=0.1),
    _timm("resmlp_12_224", 32),
    _timm("xcit_nano_12_p16_224", 32, img_size=32, embed_dim=32, depth=2, num_heads=2),
    _timm("pit_ti_224", 64, img_size=64, depth=(1, 1, 1), base_dims=(8, 8, 8)),
    _timm("cait_xxs24_224", 32, img_size=32, patch_size=8, depth=2, **_DIM),
    _timm("edgenext_xx_small", 64, depths=(1, 1, 2, 1), dims=(16, 24, 32, 48)),
    _timm("regnetx_002", 64, drop_path_rate=0.1),
]

# A config each (the head, then sizes); both with and without a mask.
# Tied embeddings train on both sides of nearly every cut, so they are untied.
_UNTIED = {"vocab_size": VOCABULARY, "tie_word_embeddings": False}
_TINY = _UNTIED | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_BERT = _TINY | {"intermediate_size": 64, "max_position_embeddings": 80}
_DECODER = _BERT | {"num_key_value_heads": 2}
_TEXT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        _UNTIED | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 80, "bos_token_id": 0} | {"eos_token_id": 1},
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", _DECODER),
    "mistral": ("MistralConfig", "MistralForCausalLM", _DECODER | {"sliding_window": 4}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _DECODER),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", _DECODER | {"head_dim": 8}),
    "opt": ("OPTConfig", "OPTForCausalLM", _TINY | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _BERT),
    "bert": ("BertConfig", "BertForSequenceClassification", _BERT),
    "roberta": ("RobertaConfig", "RobertaForSequenceClassification", _BERT),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    ),
    "albert": ("AlbertConfig", "AlbertForSequenceClassification", _BERT | {"embedding_size": 16}),
    "electra": ("ElectraConfig", "ElectraForTokenClassification", _BERT | {"embedding_size": 16}),
    "bart": (
        "BartConfig",
        "BartModel",
        _UNTIED
        | {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
        | {
            f"{side}_{what}": n
            for side in ("encoder", "decoder")
            for what, n in (("ffn_dim", 64), ("attention_heads", 4))
        },
    ),
}


def hugging_face(config: str, model: str, attention: str | None = None, **sizes: Any) -> Callable[[], nn.Module]:
    """Return a builder of a model of transformers from a config of these sizes."""

    def build() -> nn.Module:
        import transformers

        if attention is not None:
            sizes["attn_implementation"] = attention
        return getattr(transformers, model)(getattr(transformers, config)(**sizes))

    return build


HUGGING_FACE = [
    Entry(f"hf {name}{' mask' if mask else ''}", hugging_face(c, m, **sizes), tokens(mask=mask), lengths=True)
    for mask in (False, True)
    for name, (c, m, sizes) in _TEXT.items()
]
HUGGING_FACE += [
    Entry(
        "hf gpt2 eager",
        hugging_face(*_TEXT["gpt2"][:2], attention="eager", **_TEXT["gpt2"][2]),
        tokens(mask=False, as_dict=False),
        lengths=True,
    ),
    Entry(
        "hf t5",
        hugging_face(
            "T5Config",
            "T5ForConditionalGeneration",
            **_UNTIED | {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4},
        ),
        tokens(mask=False, decoder=True),
        lengths=True,
        frozen="shared.weight",  # of encoder, decoder and head: were it trained, no cut could be offered
    ),
    Entry(
        "hf vit",
        hugging_face(
            "ViTConfig",
            "ViTForImageClassification",
            **{"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64},
            **{"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_dropout_prob": 0.1},
        ),
        images(32, "pixel_values"),
    ),
    Entry(
        "hf swin",
        hugging_face(
            "SwinConfig",
            "SwinForImageClassification",
            **{"image_size": 32, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        ),
        images(32, "pixel_values"),
    ),
    Entry(
        "hf segformer",
        hugging_face(
            "SegformerConfig",
            "SegformerForSemanticSegmentation",
            **{"depths": [1, 1], "hidden_sizes": [16, 32], "num_encoder_blocks": 2, "decoder_hidden_size": 16},
            **{"sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2]},
            **{"mlp_ratios": [2, 2]},
        ),
        images(32, "pixel_values"),
    ),
]

OWN = [
    Entry("own unet", UNet, images(16)),
    Entry("own lstm", LSTMClassifier, tokens(mask=False, as_dict=False), lengths=True),
    Entry("own transformer", TransformerClassifier, tokens(mask=False, as_dict=False), lengths=True),
]

ZOO = {entry.name: entry for entry in [*TORCHVISION, *TIMM, *HUGGING_FACE, *OWN]}
