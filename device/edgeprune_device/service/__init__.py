"""The service, `edgeprune run`: frames -> detections, for months, whatever happens to the model, the camera, the disk.

    supervisor   starts and watches the worker, reports its state; imports no numpy
    keeper       which release runs      child   the worker as its supervisor sees it
    worker       a separate process: verifies the bundle, opens model and source, one line of JSON a frame
    protocol     the messages between the two
    detections   that line               sinks   its output: standard output, a file, a socket
    status       run/status.json         notify  systemd's own protocol       unit   its unit file

A driver that hangs or crashes ends only the worker.
"""
