"""Download models of the Hugging Face Hub, whole or in parts.

`partial.open_partial` opens a model with its headers only and fetches ranges of its weights later.
`whole.download_whole` fetches all of it into the Hub's cache. `inherit` uses the first, training
and evaluation the second; both go on where a stopped or killed download ended.
"""
