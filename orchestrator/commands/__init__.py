"""Commands that both find and show: orchestrator.client finds, orchestrator.screen and live show."""
