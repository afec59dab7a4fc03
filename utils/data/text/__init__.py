"""Documents -> blocks of token ids.

In: the built-in corpus, files, a dataset of the Hub, or a list of texts. Out: `PreparedData` with blocks for training and
validation, the tokenizer and a report. Open `prepare.py` first; `loader.py` holds `DatasetLoader`, which loads without
tokenizing.
"""
