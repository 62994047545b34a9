"""Boards as trees of files: the parts of /sys, /proc and /etc that edgeprune reads. README.md names their sources.

`write(board, folder)` creates a tree with the links of the real /sys; `files(name)` gives the same as {path: content}.
The content OFF is a sensor that answers EAGAIN. A plain file cannot do so, so `write` creates an empty file; the FUSE
tree (fakes/fuse_sysfs.py) gives the real answer.
"""

import os
from pathlib import Path

OFF = "EAGAIN"
GIGABYTE_KIB = 1 << 20


def _ina3221(address, hwmon, rails, bus="c240000.i2c/i2c-1"):
    """{path: content}, {link: target}; rails: [(label, mV, mA)] of the three inputs."""
    device = f"sys/devices/platform/{bus}/1-{address:04x}"
    chip = f"{device}/hwmon/hwmon{hwmon}"
    tree = {f"{device}/name": "ina3221", f"{chip}/name": "ina3221"}
    for n, (label, mv, ma) in enumerate(rails, 1):
        tree.update({f"{chip}/in{n}_label": label, f"{chip}/in{n}_input": mv, f"{chip}/curr{n}_input": ma})
        tree.update({f"{chip}/in{n}_enable": 1, f"{chip}/curr{n}_crit": 4000, f"{chip}/curr{n}_max_alarm": 0})
    tree.update({f"{chip}/in7_label": "sum of shunt voltages", f"{chip}/in7_input": 24000})
    tree[f"{chip}/curr4_input"] = 9999
    return tree, {f"sys/bus/i2c/devices/1-{address:04x}": device, f"sys/class/hwmon/hwmon{hwmon}": chip}


def _hwmon(number, device, name, contents):
    folder = f"sys/devices/platform/{device}/hwmon/hwmon{number}"
    tree = {f"{folder}/name": name, **{f"{folder}/{file}": content for file, content in contents.items()}}
    return tree, {f"sys/class/hwmon/hwmon{number}": folder}


def _zones(zones):
    """zones: [(type, m°C or OFF)]."""
    tree, links = {}, {}
    for n, (kind, temp) in enumerate(zones):
        folder = f"sys/devices/virtual/thermal/thermal_zone{n}"
        tree.update({f"{folder}/type": kind, f"{folder}/temp": temp, f"{folder}/trip_point_0_temp": 99000})
        links[f"sys/class/thermal/thermal_zone{n}"] = folder
    return tree, links


def _alerts(types):
    tree, links = {}, {}
    for n, kind in enumerate(types):
        folder = f"sys/devices/virtual/thermal/cooling_device{n}"
        tree.update({f"{folder}/type": kind, f"{folder}/cur_state": 0, f"{folder}/max_state": 1})
        links[f"sys/class/thermal/cooling_device{n}"] = folder
    return tree, links


def _gpu(device, clocks, governor="nvhost_podgov", load=0):
    """device: the GPU's, e.g. "platform/bus@0/17000000.gpu"; clocks: (cur, min, max) in Hz."""
    name = device.rsplit("/", 1)[-1]
    folder = f"sys/devices/{device}/devfreq/{name}"
    tree = {f"{folder}/{which}_freq": hz for which, hz in zip(("cur", "min", "max"), clocks)}
    tree[f"{folder}/governor"] = governor
    if load is not None:
        tree[f"sys/devices/{device}/load"] = load
    links = {f"sys/class/devfreq/{name}": folder, f"{folder}/device": f"sys/devices/{device}"}
    return tree, links


def _cpus(policies, online, present, khz=(729600, 729600, 1984000), governor="schedutil"):
    tree = {"sys/devices/system/cpu/online": online, "sys/devices/system/cpu/present": present}
    for policy in policies:
        folder = f"sys/devices/system/cpu/cpufreq/policy{policy}"
        tree.update({f"{folder}/scaling_{which}_freq": f for which, f in zip(("cur", "min", "max"), khz)})
        tree[f"{folder}/scaling_governor"] = governor
    base = "sys/devices/system/cpu"
    return tree, {f"{base}/cpu{policy}/cpufreq": f"{base}/cpufreq/policy{policy}" for policy in policies}


def _emc(cap_hz):
    return {"sys/kernel/nvpmodel_clk_cap/emc": cap_hz}, {}


def _identity(model, compatible, serial, release):
    base = "sys/firmware/devicetree/base"
    content = "".join(f"{name}\0" for name in compatible)
    tree = {f"{base}/model": f"{model}\0", f"{base}/compatible": content, f"{base}/serial-number": f"{serial}\0"}
    return {**tree, "etc/nv_tegra_release": f"{release}\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia"}, {}


def _memory(total_gib, available_gib):
    sizes = {"MemTotal": total_gib, "MemFree": 1, "MemAvailable": available_gib, "SwapTotal": 4, "SwapFree": 3}
    lines = [f"{name}:{gib * GIGABYTE_KIB:>16} kB" for name, gib in sizes.items()]
    return {"proc/meminfo": "\n".join([*lines, "HugePages_Total:       0"])}, {}


def _join(*parts):
    tree, links = {}, {}
    for files, its_links in parts:
        tree.update(files)
        links.update(its_links)
    return tree, links


_OC = {"oc1_event_cnt": 0, "oc2_event_cnt": 15, "oc3_event_cnt": 37, "oc1_throt_en": 1, "oc2_throt_en": 1}
_NX_RAILS = [("VDD_IN", 5000, 1050), ("VDD_CPU_GPU_CV", 5000, 102), ("VDD_SOC", 5000, 544)]
_AGX_RAILS = [("VDD_GPU_SOC", 19900, 169), ("VDD_CPU_CV", 19900, 24), ("VIN_SYS_5V0", 4968, 980)]
_AGX_MORE = [("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 4968, 80), ("NC", 0, 0)]
_ORIN = ["cpu", "gpu", "cv0", "cv1", "cv2", "soc0", "soc1", "soc2", "tj"]
_ALERTS = [*(f"{zone}-throttle-alert" for zone in _ORIN if zone != "tj"), "hot-surface-alert", "pwm-fan"]


def _orin_zones(style, more=()):
    """cv0 to cv2 are off: -256 C on JetPack 5, EAGAIN since 6."""
    values = dict(zip(_ORIN, (48562, 49625, None, None, None, 48625, 47937, 46593, 49312)))
    off = -256000 if style == 5 else OFF
    names = {zone: (zone.upper() if style == 5 and zone != "tj" else zone) for zone in _ORIN}
    suffix = "-therm" if style == 5 else "-thermal"
    zones = [(names[zone] + suffix, off if values[zone] is None else values[zone]) for zone in _ORIN]
    return _zones([*zones, *more])


def _orin(style, rails, more_rails, hwmon, identity, policies, online, present, gpu_max, memory, more_zones=()):
    gpu = {5: "17000000.ga10b", 6: "platform/bus@0/17000000.gpu", 7: "platform/bus@0/17000000.gpu"}[style]
    parts = [
        _ina3221(0x40, hwmon + 1, rails),
        _hwmon(hwmon, "pwm-fan", "pwmfan", {"pwm1": 102}),
        _hwmon(hwmon + 3, "39c0000.tachometer", "pwm_tach", {"rpm": 2140}),
        _hwmon(hwmon + 4, "soctherm-oc-event", "soctherm_oc", _OC),
        _orin_zones(style, more_zones),
        _alerts(_ALERTS),
        _gpu(gpu, (305895000, 305895000, gpu_max)),
        _cpus(policies, online, present),
        _emc(3199000000),
        identity,
        _memory(*memory),
    ]
    if more_rails:
        parts.append(_ina3221(0x41, hwmon + 2, more_rails))
    return _join(*parts)


def _release(major, revision):
    date = "DATE: Wed Jan  8 01:49:37 UTC 2025"
    return f"# R{major} (release), REVISION: {revision}, GCID: 0, BOARD: generic, EABI: aarch64, {date}"


def _orin_names(model, boards, module):
    return f"NVIDIA Jetson {model}", [f"nvidia,{boards}", f"nvidia,{module}", "nvidia,tegra234"]


_NX = _orin_names("Orin NX Engineering Reference Developer Kit", "p3768-0000+p3767-0000", "p3767-0000")
_NANO = _orin_names("Orin Nano Engineering Reference Developer Kit Super", "p3768-0000+p3767-0005-super", "p3767-0005")
_AGX = _orin_names("AGX Orin Developer Kit", "p3737-0000+p3701-0005", "p3701-0005")
_DIODES = [("tboard-thermal", 37500), ("tdiode-thermal", 39750)]


def _thor():
    regions = [(f"{zone}-thermal", 55100) for zone in ("tj", "soc012", "cpu", "soc345")]
    names = ["nvidia,p4071-0000+p3834-0008", "nvidia,tegra264"]
    gpc = _gpu("platform/bus@0/gpu-gpc-0", (1575000000, 306000000, 1575000000), "nvhost_podgov", None)
    nvd = _gpu("platform/bus@0/gpu-nvd-0", (1692000000, 306000000, 1692000000), "nvhost_podgov", None)
    emc = _gpu("platform/bus@0/bwmgr", (4266000000, 665600000, 4266000000), "userspace", None)
    ina238 = "sys/devices/platform/c600000.i2c/i2c-2/2-0044"
    carrier = {f"{ina238}/hwmon/hwmon7/name": "ina238", f"{ina238}/hwmon/hwmon7/power1_input": 23104000}
    return _join(
        _ina3221(0x40, 6, [("VDD_GPU", 20000, 0), ("VDD_CPU_SOC_MSS", 20000, 326), ("VIN_SYS_5V0", 5000, 1304)]),
        (carrier, {"sys/class/hwmon/hwmon7": f"{ina238}/hwmon/hwmon7", "sys/bus/i2c/devices/2-0044": ina238}),
        _hwmon(1, "pwm-fan", "pwmfan", {"pwm1": 58, "fan1_input": 1786}),
        _hwmon(5, "soctherm-oc-event", "soctherm_oc", {"oc1_event_cnt": 0, "oc2_event_cnt": 0, "oc3_event_cnt": 179}),
        _zones([*regions, ("gpu-thermal", OFF)]),
        gpc,
        nvd,
        emc,
        _cpus([0], "0-13", "0-13", (2601000, 972000, 2601000)),
        _identity("NVIDIA Jetson AGX Thor Developer Kit", names, "1425325000000", _release(38, "2.2")),
        _memory(122, 100),
    )


def _boards():
    def orin(who, release):
        return _identity(who[0], who[1], "1424823000000", _release(*release))

    boards = {"jetson-agx-thor, JetPack 7": _thor()}
    nx, nano = ("0-7", "0-7", 918000000, (15, 11)), ("0-5", "0-5", 1020000000, (7, 5))
    agx = ("0-7", "0-11", 1300500000, (61, 55))  # its default mode turns four cores off
    for style, release, shift in ((5, (35, "4.1"), 2), (6, (36, "4.3"), 0), (7, (39, "2.0"), 3)):
        for name, who, rails, more, policies, rest, zones in (
            ("jetson-orin-nx", _NX, _NX_RAILS, None, [0, 4], nx, ()),
            ("jetson-orin-nano", _NANO, _NX_RAILS, None, [0, 4], nano, ()),
            ("jetson-agx-orin", _AGX, _AGX_RAILS, _AGX_MORE, [0, 4, 8], agx, _DIODES),
        ):
            tree = _orin(style, rails, more, shift, orin(who, release), policies, *rest, zones)
            boards[f"{name}, JetPack {style}"] = tree
    return boards


_BOARDS = _boards()
NAMES = sorted(_BOARDS)


def files(name):
    """{path: content} of a board, and {link: target}."""
    tree, links = _BOARDS[name]
    return dict(tree), dict(links)


def write(name, folder, changes=None):
    """Write the board's tree to `folder`, and return it. `changes`: {path: other content, or None to omit it}."""
    tree, links = files(name)
    tree.update(changes or {})
    for path, content in tree.items():
        if content is not None:
            place = Path(folder) / path
            place.parent.mkdir(parents=True, exist_ok=True)
            text = "" if content == OFF else str(content)
            place.write_text(text if text.endswith("\0") else f"{text}\n", encoding="utf-8")
    for link, target in links.items():
        place = Path(folder) / link
        place.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(os.path.relpath(str(Path(folder) / target), str(place.parent)), str(place))
    return Path(folder)


def rail(name, label):
    """(path of its voltage, path of its current) in a board's tree."""
    tree, _ = files(name)
    path = next(path for path, content in tree.items() if path.endswith("_label") and content == label)
    folder, n = path.rsplit("/", 1)[0], path.rsplit("/", 1)[1][len("in")]
    return f"{folder}/in{n}_input", f"{folder}/curr{n}_input"
