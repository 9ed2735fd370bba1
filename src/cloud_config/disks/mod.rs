//! `growpart`, `resize_rootfs`, `disk_setup`, `fs_setup`, `mounts`, `swap`: what they ask for ([`growth`], [`setup`], [`mounts`],
//! [`swap`]), which device a name means ([`devices`]), and doing it ([`formatting`], [`fstab`]).

mod devices;
mod formatting;
mod fstab;
mod growth;
mod mounts;
mod setup;
mod swap;

use super::read::Reader;
use super::{Keys, Task, Wish};
pub(super) use formatting::apply as make;
pub(super) use fstab::apply as mount;
pub(crate) use growth::Growth;
pub(crate) use mounts::Mounts;
pub(crate) use setup::Disks;

impl Keys<'_> {
    /// What grows, what is made on disks, and what is mounted.
    pub(super) fn disks(&mut self) -> [Option<Wish>; 3] {
        let growth = self
            .read(["growpart", "resize_rootfs"], |reader, [part, resize]| growth::read(reader, part, resize));
        let growth = growth.map(|(growth, canonical)| Wish { task: Task::Growth(growth), canonical });
        let disks =
            self.read(["disk_setup", "fs_setup", "device_aliases"], |reader, [tables, systems, aliases]| {
                let aliases = devices::aliases(reader, aliases);
                setup::read(reader, tables, systems, &aliases)
            });
        let disks = disks.and_then(|(disks, canonical)| Some(Wish { task: Task::Disks(disks?), canonical }));
        let mounts = self.read(
            ["mounts", "mount_default_fields", "swap", "device_aliases"],
            |reader, [list, defaults, swap, aliases]| {
                // What is wrong with them was told above.
                let aliases = devices::aliases(&mut Reader::default(), aliases);
                mounts::read(reader, [list, defaults, swap], &aliases)
            },
        );
        let mounts =
            mounts.and_then(|(mounts, canonical)| Some(Wish { task: Task::Mounts(mounts?), canonical }));
        [growth, disks, mounts]
    }
}
