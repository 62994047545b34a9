"""The commands as functions: `import edgeprune as ep; ep.prune("best.pt", ratio=0.2)`.

One file a verb; each checks what it was asked, does it with the modules of the same nouns, and returns a result that
prints as the command does (`print(result)`), shows itself in a notebook, and can be given to the next verb. The
commands (commands/) only parse their options and print.
"""
