"""Training tasks: one class in one file per task. Importing this registers all of them.

`base.py` says what a task is and how another one is added; `tokens.py` holds what the tasks over a vocabulary share,
`classes.py` what the classifying ones do; `inference.py` finds the task of a model and a batch.
"""

from __future__ import annotations

from utils.training.engine.loss.tasks.base import Prediction, Task, Wording, find_task, make_task, register_task
from utils.training.engine.loss.tasks.causal_lm import CausalLM
from utils.training.engine.loss.tasks.image_classification import ImageClassification
from utils.training.engine.loss.tasks.inference import infer_task_spec
from utils.training.engine.loss.tasks.masked_lm import MaskedLM
from utils.training.engine.loss.tasks.regression import Regression
from utils.training.engine.loss.tasks.seq2seq import Seq2Seq
from utils.training.engine.loss.tasks.text_classification import MultiLabelClassification, TextClassification
from utils.training.engine.loss.tasks.token_classification import TokenClassification

__all__ = [
    "Task", "Prediction", "Wording", "register_task", "find_task", "make_task", "infer_task_spec",
    "CausalLM", "MaskedLM", "Seq2Seq", "TextClassification", "MultiLabelClassification", "ImageClassification",
    "TokenClassification", "Regression",
]  # fmt: skip
