"""Healthy models of further makes: adapters by peft, experts, gated and parallel blocks, tables with categories."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests.kit.planted_designs import Applied, D, Heads, Residual, T, Text, V
from tests.kit.toys import tiny_gpt


def with_peft(trained: bool = False, task: str = "CAUSAL_LM") -> nn.Module:
    """A tiny GPT-2 with LoRA by peft."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny_gpt(vocab_size=V, length=T),
        LoraConfig(r=4, target_modules=["c_attn"], task_type=task, fan_in_fan_out=True),
    )
    if trained:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        ids = (torch.arange(16) + torch.arange(8)[:, None]) % V
        for _ in range(30):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


class ReZero(nn.Module):
    """A block whose branches begin switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer, self.mlp = Heads(), nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D))
        self.gates = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gates[0] * self.mixer(x)
        return x + self.gates[1] * self.mlp(x)


class Parallel(nn.Module):
    """Attention and MLP side by side on one RMSNorm, without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mixer = nn.RMSNorm(D), Heads()
        self.gate, self.up, self.down = (nn.Linear(D, D, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.mixer(y) + self.down(F.silu(self.gate(y)) * self.up(y))


class Experts(nn.Module):
    """One of four experts for every token, weighed by its probability (Switch)."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(D, 4, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, D)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        share, chosen = self.router(x).softmax(-1).max(-1)
        mixed = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            here = chosen == index
            mixed[here] = expert(x[here]) * share[here][..., None]
        return mixed


class Alibi(nn.Module):
    """Causal attention that subtracts the distance, by another slope for every head."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Heads(self.weights)

    @staticmethod
    def weights(scores: Tensor, seen: Tensor) -> Tensor:
        places = torch.arange(scores.shape[-1])
        slopes = 2.0 ** -torch.arange(1, scores.shape[1] + 1)
        distance = (places[:, None] - places).clamp_min(0)
        return (scores - slopes[:, None, None] * distance).masked_fill(~seen, -torch.inf).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Linearised(nn.Module):
    """Linear attention: a running sum of outer products."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        weights = (q @ k.mT).tril()
        return self.out(weights @ v / weights.sum(-1, keepdim=True))


class LongConvolution(nn.Module):
    """A filter as long as the text, applied by FFT (Hyena)."""

    def __init__(self) -> None:
        super().__init__()
        self.filter, self.gate = nn.Parameter(torch.randn(T, D) / T), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        spectrum = torch.fft.rfft(self.filter[:length], n=2 * length, dim=0)
        mixed = torch.fft.irfft(torch.fft.rfft(x, n=2 * length, dim=1) * spectrum, n=2 * length, dim=1)[:, :length]
        return mixed * self.gate(x).sigmoid()


class Registers(nn.Module):
    """A ViT with four register tokens beside its class token."""

    def __init__(self) -> None:
        super().__init__()
        self.image_size, self.num_channels = 16, 3
        self.patches = nn.Conv2d(3, D, 4, 4)
        self.extra, self.places = nn.Parameter(0.02 * torch.randn(5, D)), nn.Parameter(0.02 * torch.randn(16, D))
        layer = nn.TransformerEncoderLayer(D, 2, 2 * D, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, 5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.patches(pixel_values).flatten(2).mT + self.places
        x = self.layers(torch.cat([self.extra.expand(len(x), -1, -1), x], 1))
        return self.head(self.norm(x[:, 0]))


class Columns(nn.Module):
    """Numbers (B, 6) -> scores: every column a token (FT-Transformer)."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features = 6
        self.weight, self.bias = nn.Parameter(torch.randn(6, D) / D**0.5), nn.Parameter(torch.randn(6, D) / D**0.5)
        self.first = nn.Parameter(torch.randn(1, D) / D**0.5)
        layer = nn.TransformerEncoderLayer(D, 2, 2 * D, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x[..., None] * self.weight + self.bias
        return self.head(self.norm(self.layers(torch.cat([self.first.expand(len(x), 1, D), tokens], 1))[:, 0]))


class TiedEncoderDecoder(nn.Module):
    """One table of embeddings for encoder, decoder and head."""

    def __init__(self) -> None:
        super().__init__()
        self.max_seq_len = T
        self.embedding, self.positions = nn.Embedding(V, D), nn.Embedding(T, D)
        nn.init.normal_(self.embedding.weight, std=D**-0.5)
        self.body = nn.Transformer(D, 2, 1, 2, 2 * D, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(D, V, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        source, target = (
            self.embedding(ids) + self.positions(torch.arange(ids.shape[1])) for ids in (input_ids, decoder_input_ids)
        )
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.head(self.body(source, target, tgt_mask=mask, tgt_is_causal=True)) / math.sqrt(D)


class TextByConvolutions(nn.Module):
    """ids (B, T) -> scores (B, 3) by convolutions of three widths and a maximum over time (Kim 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.max_seq_len = T
        self.embedding = nn.Embedding(V, D, padding_idx=0)
        self.layers = nn.ModuleList(nn.Conv1d(D, 16, width, padding=width // 2) for width in (3, 5, 7))
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(48, 3))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids).mT
        return self.head(torch.cat([layer(x).relu().amax(-1) for layer in self.layers], 1))


class PackedRecurrence(nn.Module):
    """ids and mask -> scores by a bidirectional LSTM that does not see the padding on the right."""

    def __init__(self) -> None:
        super().__init__()
        self.max_seq_len = T
        self.embedding = nn.Embedding(V, D)
        self.cell, self.head = nn.LSTM(D, D // 2, batch_first=True, bidirectional=True), nn.Linear(D, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        order = (1 - mask).argsort(dim=1, stable=True)  # the real tokens first, whichever side was padded
        x = self.embedding(input_ids.gather(1, order))
        packed = nn.utils.rnn.pack_padded_sequence(x, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        _, (state, _) = self.cell(packed)
        return self.head(torch.cat(list(state), -1))


class SelfNormalising(nn.Module):
    """SELU, LeCun-normal weights and alpha dropout."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((8, 64), (64, 64), (64, 64), (64, 64)):
            linear = nn.Linear(before, after)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="linear")
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.SELU(), nn.AlphaDropout(0.05)]
        self.layers = nn.Sequential(*layers, nn.Linear(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Mixed(nn.Module):
    """MLP-Mixer on patches."""

    def __init__(self) -> None:
        super().__init__()
        self.image_size, self.num_channels = 16, 1
        self.patches = nn.Conv2d(1, D, 4, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(4))
        self.tokens = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(2))
        self.channels = nn.ModuleList(nn.Sequential(nn.Linear(D, 64), nn.GELU(), nn.Linear(64, D)) for _ in range(2))
        self.head = nn.Linear(D, 4)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.patches(pixel_values).flatten(2).mT
        for index in range(2):
            x = x + self.tokens[index](self.norms[2 * index](x).mT).mT
            x = x + self.channels[index](self.norms[2 * index + 1](x))
        return self.head(x.mean(1))


def weight_normed() -> nn.Module:
    """A causal convolution net with weight normalisation (TCN)."""
    return Text(
        *(
            Residual(Applied(weight_norm(nn.Conv1d(D, D, 3)), lambda layer, x: layer(F.pad(x.mT, (2, 0))).mT))
            for _ in range(2)
        )
    )


def sigmoid_attention() -> nn.Module:
    """Sigmoid attention with the bias -ln(longest length) (Ramapuram et al. 2024)."""
    return Text(*(Residual(Heads(lambda s, seen: (s - math.log(T)).sigmoid() * seen)) for _ in range(2)))


def tiny_embedding() -> nn.Module:
    """An embedding that starts at 1e-4 and is normalised at once (RWKV)."""

    class Small(Text):
        def __init__(self) -> None:
            super().__init__(Residual(Alibi()), Residual(Alibi()))
            nn.init.uniform_(self.embedding.weight, -1e-4, 1e-4)
            self.first = nn.LayerNorm(D)
            self.positions = None  # type: ignore[assignment]

        def embedded(self, ids: Tensor) -> Tensor:
            return self.first(self.embedding(ids))

    return Small()


def _frozen_body_in_bf16() -> nn.Module:
    model = Text(*(Residual(Heads()) for _ in range(3)))
    for block in model.blocks[:2]:
        block.requires_grad_(False)
    model.embedding.requires_grad_(False)
    model.positions.requires_grad_(False)
    return model.to(torch.bfloat16)


def albert_trained() -> nn.Module:
    """An ALBERT classifier after a short training."""
    import transformers

    config = transformers.AlbertConfig(
        vocab_size=V, embedding_size=16, hidden_size=D, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, num_labels=2,
    )  # fmt: skip
    model = transformers.AlbertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(V, (64, 12), generator=torch.Generator().manual_seed(0))
    labels = (ids[:, 3] > V // 2).long()
    for _ in range(40):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def _stock(model: str, config: str, **sizes: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**sizes))

    return make


def _checkpointed() -> nn.Module:
    model = tiny_gpt(vocab_size=V, length=T)
    model.gradient_checkpointing_enable()
    return model


def spectrally_normed() -> nn.Module:
    """Power iteration moves its vectors with every forward pass in training mode."""
    model = Text(Residual(Heads()), Residual(Heads()))
    for block in model.blocks:
        spectral_norm(block.mlp[2])
    return model


def prices() -> nn.Module:
    """A regression that starts at the mean of its targets, beside which it varies little."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    nn.init.constant_(model[-1].bias, 2e5)
    return model


class _ZeroEnded(nn.Module):
    """A residual block of convolutions whose last normalisation starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.first_norm, self.last_norm = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        nn.init.zeros_(self.last_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.last_norm(self.second(F.relu(self.first_norm(self.first(x))))))


def zero_ended() -> nn.Module:
    """A ResNet whose branches start switched off (Goyal et al. 2017, 5.1)."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), _ZeroEnded(8), _ZeroEnded(8)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    model.image_size, model.num_channels = 12, 3
    return model


class _Scaled(nn.Module):
    """Root mean square normalisation of a class and with names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(D))

    def forward(self, x: Tensor) -> Tensor:
        return x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt() * self.gain


class _WithoutBiases(nn.Module):
    """Embedding, one gated block and output layer, without a bias or a module that is called a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size, self.max_seq_len = V, T
        self.embedding, self.first, self.last = nn.Embedding(V, D), _Scaled(), _Scaled()
        self.gate, self.up, self.down = (nn.Linear(D, D, bias=False) for _ in range(3))
        self.head = nn.Linear(D, V, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        y = self.first(x)
        return self.head(self.last(x + self.down(F.silu(self.gate(y)) * self.up(y))))


def sure_of_its_text() -> nn.Module:
    """The same, trained until it is far from a uniform guess on random ids."""
    model = _WithoutBiases()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    ids = (torch.arange(16) + torch.arange(V)[:, None]) % V
    for _ in range(60):
        F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def from_frequencies() -> nn.Module:
    """A table classifier that starts at the logarithm of its classes' frequencies, with dropout before its last layer."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
    with torch.no_grad():
        model[-1].bias.copy_(torch.tensor([0.95, 0.04, 0.01]).log())
    return model


#: By name; each a function that makes the model.
MAKES: dict[str, Callable[[], nn.Module]] = {
    "GPT-2 with LoRA by peft": with_peft,
    "GPT-2 with LoRA by peft, trained": lambda: with_peft(trained=True),
    "GPT-2 with gradient checkpointing": _checkpointed,
    "ReZero": lambda: Text(ReZero(), ReZero(), ReZero()),
    "parallel attention with RMSNorm": lambda: Text(Parallel(), Parallel()),
    "experts (Switch)": lambda: Text(Residual(Heads(), Experts()), Residual(Heads(), Experts())),
    "ALiBi": lambda: Text(Residual(Alibi()), Residual(Alibi())),
    "linear attention": lambda: Text(Residual(Linearised()), Residual(Linearised())),
    "long convolution by FFT": lambda: Text(Residual(LongConvolution()), Residual(LongConvolution())),
    "sigmoid attention": sigmoid_attention,
    "weight normalisation": weight_normed,
    "ALBERT classifier, trained": albert_trained,
    "frozen body in bf16": _frozen_body_in_bf16,
    "tied encoder-decoder": TiedEncoderDecoder,
    "ViT with registers": Registers,
    "transformer over columns": Columns,
    "convolutions over text": TextByConvolutions,
    "packed bidirectional LSTM": PackedRecurrence,
    "SELU": SelfNormalising,
    "MLP-Mixer": Mixed,
    "tiny embedding before a LayerNorm": tiny_embedding,
    "spectral normalisation": spectrally_normed,
    "ResNet with switched-off branches": zero_ended,
    "no biases, norms of its own, trained": sure_of_its_text,
    "regression from the mean price": prices,
    "bias of the classes' frequencies": from_frequencies,
    "RWKV": _stock("RwkvForCausalLM", "RwkvConfig", vocab_size=V, hidden_size=D, num_hidden_layers=2, attention_hidden_size=D, intermediate_size=64, context_length=T, bos_token_id=0, eos_token_id=0),
    "Mamba-2": _stock("Mamba2ForCausalLM", "Mamba2Config", vocab_size=V, hidden_size=D, num_hidden_layers=2, num_heads=4, head_dim=16, expand=2, state_size=8, n_groups=1, chunk_size=8, bos_token_id=0, eos_token_id=0, pad_token_id=1),
    "Phi (parallel, partial rotary)": _stock("PhiForCausalLM", "PhiConfig", vocab_size=V, hidden_size=D, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=1),
    "ELECTRA discriminator": _stock("ElectraForSequenceClassification", "ElectraConfig", vocab_size=V, embedding_size=16, hidden_size=D, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64),
}  # fmt: skip
