"""Names for faults that no list has: a small change of one operation that gives the foreign numbers.

terms.py states what each tap is. changes.py lists the small changes of such a term (rules.py: what they do; words.py:
what they are called), and scopes.py the layers that may have one. search.py finds the change that gives the numbers of
a dump at the first wrong tap, and carry.py makes it in the model, as a `Fault`, so that it is judged like one of the
catalogue.
"""
