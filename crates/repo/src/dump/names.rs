//! Where the objects of a dump lie.

use crate::{BackupId, ClusterName};
use store::ObjectPath;

fn path(text: String) -> ObjectPath {
    ObjectPath::new(text).expect("names inside a repository are made of checked parts")
}

impl ClusterName {
    /// `clusters/NAME/dumps`.
    pub fn dumps_prefix(&self) -> ObjectPath {
        path(format!("clusters/{self}/dumps"))
    }

    /// `clusters/NAME/dumps/ID`.
    pub fn dump_prefix(&self, id: BackupId) -> ObjectPath {
        path(format!("clusters/{self}/dumps/{id}"))
    }

    /// `clusters/NAME/dumps/ID/manifest`.
    pub fn dump_manifest(&self, id: BackupId) -> ObjectPath {
        path(format!("clusters/{self}/dumps/{id}/manifest"))
    }

    /// `clusters/NAME/dumps/ID/intent`.
    pub fn dump_intent(&self, id: BackupId) -> ObjectPath {
        path(format!("clusters/{self}/dumps/{id}/intent"))
    }

    /// `clusters/NAME/dumps/ID/deleted`.
    pub fn dump_mark(&self, id: BackupId) -> ObjectPath {
        path(format!("clusters/{self}/dumps/{id}/deleted"))
    }

    /// `clusters/NAME/dumps/ID/N`.
    pub fn dump_data(&self, id: BackupId, number: u32) -> ObjectPath {
        path(format!("clusters/{self}/dumps/{id}/{number:06}"))
    }
}
