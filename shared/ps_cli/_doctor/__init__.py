"""The parts of `ps-postgres doctor`: what to check (`setups`), look (`observe`), judge (`findings`), show (`show`)."""
