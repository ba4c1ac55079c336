"""Nova's fake hypervisor, with disks: files that have the name of their server.

The fake driver neither reads an image nor uploads one. This one does both, so that
an image of a server is made of what is on its disk, as a hypervisor makes it.
"""

import os

from nova.image import glance
from nova.virt import fake
from oslo_config import cfg


def disk(instance):
    return os.path.join(cfg.CONF.state_path, "disks", instance.uuid)


class DiskDriver(fake.FakeDriver):
    def spawn(self, context, instance, image_meta, *args, **kwargs):
        if instance.image_ref:  # else it has a volume, which is elsewhere
            glance.API().download(context, instance.image_ref, dest_path=disk(instance))
        super().spawn(context, instance, image_meta, *args, **kwargs)

    def snapshot(self, context, instance, image_id, update_task_state):
        super().snapshot(context, instance, image_id, update_task_state)
        with open(disk(instance), "rb") as f:
            kind = "qcow2" if f.read(4) == b"QFI\xfb" else "raw"
            f.seek(0)
            about = {"disk_format": kind, "container_format": "bare"}
            glance.API().update(context, image_id, about, f)

    def destroy(self, context, instance, *args, **kwargs):
        super().destroy(context, instance, *args, **kwargs)
        if os.path.exists(disk(instance)):
            os.remove(disk(instance))
