"""The service, `edgeprune run`: frames -> detections, for months, whatever happens to the model, the camera, the disk.

    supervisor   starts the worker, watches it, gives account; imports no numpy
    keeper       which release runs      child   the worker as its supervisor sees it
    worker       a process of its own: verifies the bundle, opens model and source, one line of JSON a frame
    protocol     what the two tell each other
    detections   that line               sinks   where it goes: standard output, a file, a socket
    status       run/status.json         notify  systemd's own protocol       unit   its unit file

A driver that hangs or crashes takes the worker along and nothing else.
"""
