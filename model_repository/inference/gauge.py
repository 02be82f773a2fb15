"""A gauge among the server's metrics: how many streams a node holds state for."""

import triton_python_backend_utils as pb_utils


class StreamGauge:
    """The metric `lab_open_streams`, labelled with the model and its version."""

    def __init__(self, args):
        family = pb_utils.MetricFamily(
            name="lab_open_streams",
            description="Streams that a node of the lab holds state for",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        labels = {
            "model": args["model_name"],
            "version": args["model_version"],
            "instance": args["model_instance_name"],
        }
        self._family, self._metric, self._last = family, family.Metric(labels=labels), 0

    def set(self, streams):
        """Say how many there are now; the server is asked only when that has changed."""
        if streams != self._last:
            self._metric.set(streams)
            self._last = streams
