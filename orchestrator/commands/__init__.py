"""What the commands of `orch` do; orchestrator.cli names them, orchestrator.screen shows what they find."""
