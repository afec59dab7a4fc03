"""SetupConfig is valid at every moment, tells who watches, and says the same in every form."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.errors import ConfigError, DataNotFoundError
from utils.training.training_config import TrainingConfig
from utils.ui import SetupConfig

VALUES = {"epochs": 3, "batch_size": 8, "val_split": 0.2, "max_length": 64, "run_name": "try", "betas": (0.9, 0.95)}


def problems_of(error):
    return {problem.field for problem in error.value.problems}


def test_data_and_training_settings_are_attributes():
    setup = SetupConfig(batch_size=8, val_split=0.2)
    assert (setup.batch_size, setup.val_split, setup.learning_rate) == (8, 0.2, TrainingConfig().learning_rate)
    assert setup.training_config.batch_size == 8


@pytest.mark.parametrize("write", ["attribute", "set", "update"])
def test_every_way_to_write_is_the_same(write):
    setup = SetupConfig()
    if write == "attribute":
        setup.batch_size = 8
    elif write == "set":
        setup.set("batch_size", 8)
    else:
        setup.update(batch_size=8)
    assert setup.batch_size == setup.training_config.batch_size == 8


def test_names_of_other_systems_work_for_reading_and_writing():
    setup = SetupConfig(max_epochs=7, seed=3, max_seq_len=32)
    setup.accumulate_grad_batches = 2
    assert (setup.epochs, setup.random_seed, setup.max_length, setup.gradient_accumulation_steps) == (7, 3, 32, 2)
    assert (setup.max_epochs, setup.seed, setup.max_seq_len) == (7, 3, 32)


def test_a_bad_update_reports_everything_and_changes_nothing():
    setup = SetupConfig(**VALUES)
    before = setup.sections()
    with pytest.raises(ConfigError, match="did you mean batch_size") as error:
        setup.update(bach_size=4, epochs=0, val_split=0.7, learning_rate="1e-3", max_length=128)
    assert problems_of(error) == {"bach_size", "epochs", "val_split", "learning_rate"}
    assert setup.sections() == before


def test_an_unknown_attribute_suggests_the_known_one():
    setup = SetupConfig()
    with pytest.raises(AttributeError, match="did you mean batch_size"):
        _ = setup.batchsize
    with pytest.raises(ConfigError, match="did you mean batch_size"):
        setup.batchsize = 3


def test_the_training_config_is_a_snapshot():
    setup = SetupConfig(epochs=3)
    snapshot = setup.training_config
    setup.epochs = 5
    assert (snapshot.epochs, setup.training_config.epochs) == (3, 5)
    with pytest.raises(ConfigError, match="snapshot"):
        setup.training_config = TrainingConfig()


def test_a_path_means_that_file_and_builtin_forgets_it():
    setup = SetupConfig(dataset_path="my.txt")
    assert setup.dataset_source == "local"
    setup.dataset_source = "builtin"
    assert setup.dataset_path is None
    setup.dataset_path = "other.txt"
    setup.dataset_path = None
    assert setup.dataset_source == "builtin"


@pytest.mark.parametrize("name", ["dataset", "dataset_name"])
def test_a_data_set_that_is_named_is_one_of_the_hub_and_replaces_the_file(name):
    setup = SetupConfig(dataset_path="my.txt")
    setup.update(**{name: "Salesforce/wikitext", "config_name": "wikitext-2-raw-v1"})
    assert (setup.dataset_source, setup.dataset_path) == ("huggingface", None)
    assert (setup.dataset_name, setup.config_name) == ("Salesforce/wikitext", "wikitext-2-raw-v1")


@pytest.mark.parametrize(
    "change", [{"dataset_path": "x.txt"}, {"dataset": "builtin"}, {"dataset_name": "builtin"}, {"dataset_name": None}]
)
def test_other_data_forgets_the_data_set(change):
    setup = SetupConfig(dataset_name="imdb", config_name="plain_text", text_column="text")
    setup.update(**change)
    assert (setup.dataset_name, setup.config_name, setup.text_column) == (None, None, None)
    assert setup.dataset_source == ("local" if "dataset_path" in change else "builtin")


def test_another_data_set_forgets_what_belonged_to_the_first():
    setup = SetupConfig(dataset_name="Salesforce/wikitext", config_name="wikitext-2-raw-v1", text_column="text")
    setup.dataset_name = "wikitext"  # the same one under its short name
    assert (setup.dataset_name, setup.config_name) == ("wikitext", "wikitext-2-raw-v1")
    setup.text_column = "page"
    assert setup.config_name == "wikitext-2-raw-v1"
    setup.dataset_name = "someone/wikitext-2"
    assert (setup.config_name, setup.text_column) == (None, None)


def test_clearing_a_path_that_was_not_set_changes_nothing():
    setup = SetupConfig(dataset_name="imdb")
    setup.dataset_path = None
    assert (setup.dataset_source, setup.dataset_name) == ("huggingface", "imdb")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"dataset_source": "local"}, "dataset_path"),
        ({"dataset_source": "builtin", "dataset_path": "x.txt"}, "dataset_source"),
        ({"dataset_name": "builtin", "dataset_path": "x.txt"}, "dataset_source"),
        ({"dataset_name": "builtin", "dataset_source": "local"}, "dataset_source"),
        ({"dataset_name": "wikitext", "dataset_path": "x.txt"}, "dataset_path"),
        ({"dataset_name": "wikitext", "dataset_source": "builtin"}, "dataset_source"),
        ({"dataset_name": "wikitext", "dataset": "imdb"}, "dataset_name"),
        ({"dataset_source": "huggingface"}, "dataset_name"),
        ({"dataset_source": "huggingface", "dataset_path": "x.txt"}, "dataset_source"),
        ({"text_column": "article"}, "text_column"),
        ({"dataset_path": "x.txt", "config_name": "one"}, "config_name"),
        ({"dataset_source": "drive"}, "dataset_path"),
        ({"dataset_source": "upload", "dataset_name": "imdb"}, "dataset_source"),
        ({"dataset_name": "a\0b"}, "dataset_name"),
        ({"dataset_name": ""}, "dataset_name"),
        ({"dataset_name": 3}, "dataset_name"),
        ({"config_name": "wikitext-2-raw-v1"}, "config_name"),
        ({"dataset_path": ""}, "dataset_path"),
        ({"dataset_path": "a\0b"}, "dataset_path"),
        ({"max_length": 1}, "max_length"),
        ({"val_split": 0.51}, "val_split"),
        ({"val_split": -0.1}, "val_split"),
        ({"vocab_size": 1}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"tokenizer_strategy": "bpee"}, "tokenizer_strategy"),
        ({"dataset_source": ["builtin"]}, "dataset_source"),
        ({"dataset": ["builtin"]}, "dataset"),
    ],
)
def test_what_does_not_fit_together_is_refused(values, field):
    with pytest.raises(ConfigError) as error:
        SetupConfig(**values)
    assert problems_of(error) == {field}


def test_one_spelling_of_warm_up_replaces_the_other():
    setup = SetupConfig()
    setup.warmup_steps = 10
    assert (setup.warmup_steps, setup.warmup_ratio) == (10, None)
    setup.warmup_ratio = 0.2
    assert (setup.warmup_steps, setup.warmup_ratio) == (None, 0.2)


def test_observers_hear_the_names_that_changed():
    setup, heard = SetupConfig(), []
    unobserve = setup.observe(heard.append)
    setup.update(dataset_path="x.txt", epochs=2)
    setup.epochs = 2
    with pytest.raises(ConfigError):
        setup.epochs = 0
    assert heard == [("dataset_source", "dataset_path", "epochs")]
    unobserve()
    unobserve()
    setup.epochs = 3
    assert len(heard) == 1


def test_an_observer_may_end_its_observation():
    setup, heard = SetupConfig(), []
    ends = []
    ends.append(setup.observe(lambda names: (heard.append("first"), ends[0]())))
    setup.observe(lambda names: heard.append("second"))
    setup.epochs = 2
    setup.epochs = 3
    assert heard == ["first", "second", "second"]


def test_an_observer_sees_the_new_values():
    setup, seen = SetupConfig(), []
    setup.observe(lambda names: seen.append(setup.epochs))
    setup.epochs = 4
    assert seen == [4]


def test_to_dict_has_the_documented_names():
    arguments = SetupConfig(dataset_path="x.txt", epochs=3, warmup_steps=5).to_dict()
    assert set(arguments) == {
        "dataset", "dataset_path", "config_name", "vocab_size", "batch_size", "max_length", "learning_rate",
        "max_epochs", "val_split", "accumulate_grad_batches", "early_stopping_patience", "save_top_k", "seed",
        "warmup_steps", "warmup_ratio",
    }  # fmt: skip
    assert (arguments["dataset"], arguments["dataset_path"], arguments["max_epochs"]) == (None, "x.txt", 3)


def test_to_dict_names_the_data_set():
    arguments = SetupConfig(dataset_name="abisee/cnn_dailymail", config_name="3.0.0", text_column="article").to_dict()
    assert (arguments["dataset"], arguments["config_name"]) == ("abisee/cnn_dailymail", "3.0.0")
    assert (arguments["text_column"], arguments["dataset_path"]) == ("article", None)
    assert SetupConfig().to_dict()["dataset"] == "builtin"


@pytest.mark.parametrize(
    "values",
    [
        {},
        VALUES,
        {"dataset_path": "x.txt", "warmup_steps": 5},
        {"tokenizer_strategy": "character"},
        {"dataset": "Salesforce/wikitext", "config_name": "wikitext-2-raw-v1", "text_column": "text"},
    ],
)
def test_to_dict_makes_an_equal_setup(values):
    setup = SetupConfig(**values)
    assert SetupConfig(**setup.to_dict()) == setup
    assert SetupConfig(**setup.differences()) == setup


@pytest.mark.parametrize("name", ["setup.yaml", "setup.json"])
def test_a_file_holds_everything(tmp_path, name):
    setup = SetupConfig(**VALUES, dataset_path="größe.txt", vocab_size=300)
    path = setup.save(tmp_path / name)
    assert SetupConfig.load(path) == setup
    setup.update(dataset_name="abisee/cnn_dailymail", config_name="3.0.0", text_column="article")
    assert SetupConfig.load(setup.save(path)) == setup


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("traning: {epochs: 2}", "did you mean training"),
        ("setup: 3", "must hold"),
        ("training: {epoch: 2}", "did you mean epochs"),
        ("setup: {epochs: 2}\ntraining: {epochs: 3}", "both sections"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path, text, message):
    path = tmp_path / "setup.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        SetupConfig.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"nowhere\.yaml"):
        SetupConfig.load(tmp_path / "nowhere.yaml")


def test_copies_are_independent():
    setup, heard = SetupConfig(**VALUES), []
    setup.observe(heard.append)
    for other in (setup.copy(), copy.copy(setup), pickle.loads(pickle.dumps(SetupConfig(**VALUES)))):
        assert other == setup
        assert other is not setup
    twin = setup.copy()
    twin.epochs = 9
    assert setup.epochs == VALUES["epochs"]
    assert heard == []


def test_its_repr_makes_an_equal_one():
    setup = SetupConfig(**VALUES)
    assert eval(repr(setup), {"SetupConfig": SetupConfig}) == setup  # noqa: S307


def test_completion_lists_the_fields():
    assert {"batch_size", "dataset_path", "update"} <= set(dir(SetupConfig()))
    assert not inspect.isabstract(SetupConfig)


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=3)
)


@given(st.dictionaries(st.sampled_from([*SetupConfig.field_names(), "dataset", "seed", "use_amp"]), JUNK, max_size=4))
def test_any_values_give_a_valid_setup_or_a_config_error(values):
    setup = SetupConfig()
    try:
        setup.update(**values)
    except ConfigError as error:
        assert error.problems  # noqa: PT017
        assert setup == SetupConfig()
    else:
        assert SetupConfig.from_sections(setup.sections()) == setup
