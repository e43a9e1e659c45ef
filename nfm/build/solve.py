"""A solver by its name in params.yaml."""

from nfm.solve.solvers import Dopri5, Euler, Heun, Midpoint, Solver

SOLVERS = {"euler": Euler, "heun": Heun, "midpoint": Midpoint, "dopri5": Dopri5}


def make_solver(name: str) -> Solver:
    """Builds a solver with its default tolerances."""
    return SOLVERS[name]()
