"""From noise to data: solvers of the student's differential equation, and sampling with them."""
