"""The human part, in a browser: ranking answers. Needs the extra `app` (Gradio)."""
