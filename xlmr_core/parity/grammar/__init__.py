"""Names for faults that no list has: a small change of one operation that gives the foreign numbers.

terms.py states what each tap is. changes.py lists the small changes of such a term: those of weights are in
weight_changes.py, of both operands of a product in products.py, inside an attention kernel in kernels.py, and other
orders of the operations in rules.py. The variants of an operation are in activations.py, functions.py (norms, pooling,
heads), indices.py (ids and positions), tables.py, masks.py, softmaxes.py, transforms.py and matrices.py; words.py has
the words. measured.py has the changes whose numbers the dump gives: arrangements of slices (arranged.py, which undoes
operations with recovered.py and pairs.py, looks slices up with matching.py and states them with gather.py and
index_rules.py), masks and numbers added to scores (attention_read.py, shown.py), and functions made of pieces
(pieces.py).
scopes.py lists the layers that may have a change, and regions.py the rows, tokens, heads or features.

search.py finds the change that gives the numbers of a dump at the first wrong tap (target.py), on the dump's own
tensors (scenes.py). carry.py makes it in the model, as a `Fault`, so that it is judged like one of the catalogue;
joint.py has those that change two taps at once; those in which attention reads other texts are in across.py.
"""
