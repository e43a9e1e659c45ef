"""The training loop and its parts; it knows neither params nor tracker."""
