"""The service, `edgeprune run`: turns frames into detections for months, despite failures of model, camera and disk.

    supervisor   starts and watches the worker, reports its state; imports no numpy
    keeper       chooses the release     child   the supervisor's view of the worker
    worker       a separate process: verifies the bundle, opens model and source, one line of JSON a frame
    protocol     the messages between the two
    detections   formats that line       sinks   the output: standard output, a file, a socket
    pace         the typical time of each stage, and the stage that is too slow for the camera
    status       run/status.json         notify  systemd's own protocol       unit   its unit file

A driver that hangs or crashes ends only the worker.
"""
