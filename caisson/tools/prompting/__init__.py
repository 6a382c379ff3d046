"""The prompt agent: shows questions of the broker to a person, and sends the answers.

`place` is where it listens, `agent` the protocol; `plain` and `full_screen` are the two faces.
Everything in a question is untrusted: it is shown as printable ASCII (`words`), never as markup.
"""
