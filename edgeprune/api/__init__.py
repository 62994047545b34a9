"""The commands as functions: `import edgeprune as ep; ep.prune("best.pt", ratio=0.2)`.

One file holds one verb. A verb checks its arguments, calls the modules that do the work, and returns a result. A result
prints as the command prints it (`print(result)`), is shown as HTML in a notebook, and can be given to the next verb.
The commands (commands/) only parse their options and print.
"""
