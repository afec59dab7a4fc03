"""The doctor's rules, what they read, and the callback that measures it during a run. "
"`utils.training.doctor` is their face."""
