"""Text generation from prompts, with the strategies that objectives allow."""
