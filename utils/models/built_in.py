"""Importing this module puts the models that come with the library into ModelRegistry."""

from __future__ import annotations

import utils.models.images
import utils.models.pretrained
import utils.models.reference  # noqa: F401 - each module registers its models
