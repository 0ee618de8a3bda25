"""Download models of the Hugging Face Hub, whole or in parts.

`partial.open_partial` opens a model with its headers only and fetches ranges of its weights later;
`inherit` uses it. `whole.download_whole` fetches all of it into the Hub's cache, for training and
evaluation. Both resume a stopped or killed download.
"""
