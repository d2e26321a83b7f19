"""A site that moves from one broker to another under load, and the books that the move is judged by.

`site` is one process of the site; `mover` starts the processes and moves them; `verdict` judges what they wrote down.
"""
