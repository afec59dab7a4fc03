"""The finders suggest what a training then bears out, say when they cannot, and leave no trace."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader, IterableDataset

from tests.kit.toys import PlainLM, golden_config, plain_lm, same_weights, tiny_gpt, token_rows, train_set
from utils.errors import ConfigError, DataError, DataTypeError, ModelError, NonFiniteError
from utils.training import Callback, Trainer, find_batch_size, find_learning_rate
from utils.training.batch_size_finder import _largest
from utils.training.finders import _RangeTest, _suggested

GIB = 2**30


@pytest.fixture
def traces(tmp_path, rng_untouched):
    """A model with gradients, mixed modes and an optimizer with averages; fails when any of it changed, or files are left."""
    model = tiny_gpt().eval()
    model(input_ids=token_rows(2)).logits.sum().backward()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    optimizer.step()
    model.transformer.h[0].train()
    weights = copy.deepcopy(model.state_dict())
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    averages = copy.deepcopy(optimizer.state_dict())
    held = list(model.parameters())
    yield model
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(p.grad, before) for p, before in zip(model.parameters(), gradients, strict=True))
    assert all(mine is before for mine, before in zip(model.parameters(), held, strict=True))
    assert [module.training for module in model.modules()] == modes
    after = optimizer.state_dict()
    assert after["param_groups"] == averages["param_groups"]
    for number, state in averages["state"].items():
        assert all(torch.equal(state[name], after["state"][number][name]) for name in state)
    assert not list(tmp_path.iterdir())


# ---- learning rate ----


def rate_of(model, data=None, **changes):
    settings = {"training_config": golden_config(), "steps": 40, "lowest": 1e-5, **changes}
    return find_learning_rate(model, train_set() if data is None else data, **settings)


def test_the_learning_rate_finder_leaves_no_trace(traces):
    rate_of(traces, steps=12)


def test_a_callback_that_requests_a_stop_ends_the_search_early():
    class Stops(Callback):
        def on_step_end(self, step, trainer, logs=None):
            if step == 5:
                trainer.request_stop("enough")

    assert len(rate_of(plain_lm(), callbacks=[Stops()]).steps) == 5


def test_the_rates_rise_by_one_factor_and_the_suggestion_trains():
    found = rate_of(plain_lm(), highest=0.5, steps=41)
    factors = [after / before for before, after in zip(found.rates, found.rates[1:], strict=False)]
    assert found.rates[0] == pytest.approx(1e-5)
    assert factors == pytest.approx([(0.5 / 1e-5) ** (1 / 40)] * len(factors))
    assert found.steps == list(range(1, len(found.rates) + 1))
    assert found.applies
    assert f"{found.suggestion:.2g}" in found.note

    def final_loss(rate):
        config = golden_config(learning_rate=rate, early_stopping_patience=None)
        return Trainer(plain_lm(), None, config.replace(run_name=f"at-{rate:.0e}")).train(train_set()).final_loss

    suggested = final_loss(found.suggestion)
    assert suggested < final_loss(found.suggestion / 100)
    assert suggested < final_loss(min(0.9, found.suggestion * 100))


def test_the_suggestion_is_where_the_loss_falls_fastest():
    test = _RangeTest(71, 1e-7, 1.0)
    test.rates = [10 ** (-7 + step / 10) for step in range(71)]
    test.steps = list(range(1, 72))
    # Falls from 4 to 1, steepest at a rate of 1e-3, and grows again from 1e-1 on.
    test.losses = [1 + 3 / (1 + (rate / 1e-3) ** 2) + 100 * max(0.0, rate - 0.1) for rate in test.rates]
    found = _suggested(test, trained_before="")
    assert found.suggestion == pytest.approx(1e-3, rel=0.3)
    assert 1e-3 < found.a_tenth_of_minimum <= 1e-2


def test_the_first_loss_is_from_before_any_update():
    found = rate_of(plain_lm(dropout=0.0))
    config = golden_config(epochs=1, max_steps=1, warmup_steps=0)
    first = Trainer(plain_lm(dropout=0.0), None, config).train(train_set())
    assert found.losses[0] == first.step_rows()[0]["train/loss"]


def test_it_ends_when_the_loss_grows():
    found = rate_of(tiny_gpt(dropout=0.0), lowest=1e-3, highest=100.0, steps=60)
    assert found.diverged
    assert len(found.steps) < 60
    assert found.suggestion < 1


@pytest.mark.usefixtures("only_the_runs_own_passes")
def test_a_number_that_is_not_finite_ends_it_too():
    class Exploding(PlainLM):
        calls = 0

        def forward(self, tokens):
            type(self).calls += 1
            return super().forward(tokens) * (float("nan") if self.calls > 60 else 1.0)

    with torch.random.fork_rng(devices=[]):
        found = rate_of(Exploding())
    assert found.diverged
    assert len(found.steps) == 20


def test_a_model_that_is_not_finite_from_the_start_is_an_error():
    model = plain_lm()
    torch.nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(NonFiniteError, match="step 1"):
        rate_of(model)


def test_no_suggestion_where_nothing_is_learned():
    found = rate_of(plain_lm(), lowest=1e-12, highest=1e-10)
    assert found.suggestion is None
    assert "did not fall clearly" in found.note
    assert isinstance(found.plot(), Figure)


def test_a_model_that_was_trained_before_is_told_apart_by_its_loss():
    model = plain_lm(dropout=0.0)
    Trainer(model, None, golden_config(epochs=20, learning_rate=0.02, early_stopping_patience=None)).train(train_set())
    found = rate_of(model)
    assert not found.applies
    assert "far below ln V = 3.47" in found.note
    assert "2e-5 to 5e-5" in found.note


def test_a_model_that_was_loaded_is_told_apart_by_its_name():
    model = tiny_gpt()
    model.config._name_or_path = "somebody/model"
    found = rate_of(model, steps=12)
    assert not found.applies
    assert "'somebody/model'" in found.note


def test_a_trainer_gives_its_settings():
    config = golden_config(batch_size=17, gradient_accumulation_steps=1)
    mine = rate_of(Trainer(plain_lm(), None, config), training_config=None, steps=12)
    assert mine.losses == rate_of(plain_lm(), training_config=SimpleNamespace(training_config=config), steps=12).losses
    assert mine.losses != rate_of(plain_lm(), steps=12).losses


class Endless(IterableDataset):
    def __iter__(self):
        yield from token_rows()


def test_a_stream_is_refused_and_not_read():
    with pytest.raises(DataError, match="map-style"):
        rate_of(plain_lm(), DataLoader(Endless(), batch_size=4))


@pytest.mark.parametrize("wrong", [{"steps": 3}, {"lowest": 0.0}, {"lowest": 0.1, "highest": 0.01}])
def test_a_range_that_is_none_is_refused(wrong):
    with pytest.raises(ConfigError, match="0 < lowest < highest"):
        rate_of(plain_lm(), **wrong)


def test_a_model_that_cannot_be_copied_is_refused_in_words():
    model = plain_lm()
    model.lock = __import__("threading").Lock()
    with pytest.raises(ModelError, match="cannot be copied"):
        rate_of(model)


def test_the_figure_and_the_table_say_the_rate(capsys):
    found = rate_of(plain_lm())
    axes = found.plot().axes[0]
    assert axes.get_xscale() == "log"
    marked = next(line for line in axes.get_lines() if "suggestion" in line.get_label())
    assert set(marked.get_xdata()) == {found.suggestion}
    found.show()
    assert f"{found.suggestion:.2g}" in capsys.readouterr().out


# ---- batch size ----


class Limited(PlainLM):
    """Runs out of memory above `limit` rows, as a device would."""

    def __init__(self, limit, error):
        super().__init__()
        self.limit, self.error = limit, error

    def forward(self, tokens):
        if len(tokens) > self.limit:
            raise self.error
        return super().forward(tokens)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
]


def limited(limit, error=OUT_OF_MEMORY[0]):
    with torch.random.fork_rng(devices=[]):
        return Limited(limit, error)


def size_of(model, data=None, **changes):
    settings = {"training_config": golden_config(), "memory_limit_bytes": GIB, **changes}
    return find_batch_size(model, train_set() if data is None else data, **settings)


def test_the_batch_size_finder_leaves_no_trace(traces):
    size_of(traces, max_batch_size=4)


def test_the_largest_that_fits_is_found():
    found = size_of(limited(11))
    assert found.batch_size == 11
    assert found.limited_by == "memory"
    assert list(found.tried) == [1, 2, 4, 8, 16, 12, 10, 11]
    assert [size for size, fits in found.tried.items() if not fits] == [16, 12]
    assert found.gradient_accumulation_steps == 2  # 12 samples a step were planned


@pytest.mark.parametrize("error", OUT_OF_MEMORY[1:], ids=["device", "cublas", "host"])
def test_memory_runs_out_in_several_words(error):
    assert size_of(limited(1, error), memory_limit_bytes=GIB).batch_size == 1


def test_doubling_and_bisection_end_at_the_boundary():
    for limit in (1, 2, 3, 7, 100, 101):
        for boundary in range(103):
            assert _largest(lambda size, most=boundary: size <= most, limit) == min(limit, boundary)


def test_another_error_is_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="device-side assert"):
        size_of(limited(5, RuntimeError("CUDA error: device-side assert triggered")))


def test_not_even_one_row():
    with pytest.raises(ConfigError, match="not even one example"):
        size_of(limited(0))
    with pytest.raises(ConfigError, match="not even one example"):
        size_of(plain_lm(), memory_limit_bytes=1000)


def test_data_and_the_users_limit_end_the_search():
    assert size_of(plain_lm(), token_rows(5)).limited_by == "data"
    found = size_of(plain_lm(), max_batch_size=3)
    assert (found.batch_size, found.limited_by) == (3, "max_batch_size")


def test_a_cpus_memory_is_estimated_and_not_overrun():
    few = size_of(tiny_gpt(), memory_limit_bytes=2 * 2**20)
    more = size_of(tiny_gpt(), memory_limit_bytes=3 * 2**20)
    assert few.limited_by == "estimate"
    assert 1 < few.batch_size < more.batch_size < 34
    assert max(few.tried) == few.batch_size
    assert "estimate" in few.note


def test_a_loader_has_its_own_batch_size():
    with pytest.raises(DataTypeError, match="loader.dataset"):
        size_of(plain_lm(), DataLoader(train_set(), batch_size=4))


def test_the_suggestion_trains_and_is_shown(capsys):
    found = size_of(limited(6))
    found.show()
    assert "6 fits" in capsys.readouterr().out
    model = limited(6)
    config = golden_config(
        batch_size=found.batch_size, gradient_accumulation_steps=found.gradient_accumulation_steps, epochs=1
    )
    Trainer(model, None, config).train(train_set())
    assert not same_weights(model, limited(6))
