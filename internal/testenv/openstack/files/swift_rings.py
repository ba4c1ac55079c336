"""Makes rings of one device: DIRECTORY KIND=PORT..."""

import sys

from swift.common import utils

directory = sys.argv[1]
utils.set_swift_dir(directory)

from swift.common.ring import RingBuilder  # noqa: E402

for kind, port in (arg.split("=") for arg in sys.argv[2:]):
    builder = RingBuilder(part_power=6, replicas=1, min_part_hours=0)
    address = {"ip": "127.0.0.1", "port": int(port)}
    address.update({"replication_" + key: value for key, value in address.items()})
    builder.add_dev({"id": 0, "region": 1, "zone": 1, "device": "d1", "weight": 1.0, "meta": "", **address})
    builder.rebalance()
    builder.get_ring().save(f"{directory}/{kind}.ring.gz")
