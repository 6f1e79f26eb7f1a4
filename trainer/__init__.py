"""On-policy distillation of a model into its own quantised self, and its evaluation.

`config`, `layout`, `results` and `flags` are torch-free: they are the contract with the orchestrator.
"""
