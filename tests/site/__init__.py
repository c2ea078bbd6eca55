"""A site in miniature around the controller's core: disk node, tape node, movers; immediate and in memory.

Nothing here is product code but the decoder of parameter lists.  Lists are carried out by an interpreter that knows
only what the planner emits, in the plainest way (bytes in a list), so that it can disagree with the planner.  Nodes and
movers refuse what the real ones refuse (a position, an epoch below the fence, a volume in the wrong state), so that a
controller that goes on wrongly is found out here.
"""
