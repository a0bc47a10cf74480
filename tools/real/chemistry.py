"""Reactions, for models that know molecules."""

import numpy as np

REACTIONS = [
    "CC(=O)O.OCC>>CC(=O)OCC",
    "c1ccccc1Br.OB(O)c1ccncc1>>c1ccc(cc1)-c1ccncc1",
    "CC(=O)Cl.Nc1ccccc1>>CC(=O)Nc1ccccc1",
    "C=CC=C.C=CC(=O)OC>>C1=CCC(CC1)C(=O)OC",
    "CC(C)(C)OC(=O)NCc1ccccc1>>NCc1ccccc1",
    "O=Cc1ccccc1.CC(=O)c1ccccc1>>O=C(C=Cc1ccccc1)c1ccccc1",
    "COc1ccc(cc1)C(=O)O.NCCN1CCOCC1>>COc1ccc(cc1)C(=O)NCCN1CCOCC1",
    "N#Cc1ccc(F)cc1.C1COCCN1>>N#Cc1ccc(cc1)N1CCOCC1",
]


def mapping(session):
    """chython's tokens of reactants and products; the reactant's atom that each product's atom is mapped to."""
    from chython import smiles
    from chython.reactions.attention import _assign, _encode

    decisions = []
    for text in REACTIONS:
        reaction = smiles(text)
        reactants, products = list(reaction.reactants), list(reaction.products)
        encoded = _encode.encode_reaction(reactants, products)
        feed = {k: getattr(encoded, k)[None].astype(np.int64) for k in ("atoms", "neighbors", "distances", "roles")}
        attention = session.run(None, feed)[0]
        attention = (attention[encoded.p2r] + attention[encoded.r2p].T) * encoded.equal_atoms
        sides = [_assign.side_adjacency(side) for side in (reactants, products)]
        # Atoms that a molecule's symmetry makes equal have one name: which of them is taken, rounding decides.
        alike = [f"{k}.{n}" for k, molecule in enumerate(reactants) for n in molecule.atoms_order.values()]
        found, score = _assign.greedy_mapping(attention.copy(), *sides, 1.75)
        decisions.append((" ".join(alike[int(i)] if i >= 0 else "-" for i in found), float(score)))
    return decisions
