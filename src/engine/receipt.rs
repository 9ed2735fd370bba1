//! The receipt: what happened to each step. It explains; it never decides. Flat records; unknown states and
//! unknown fields of other versions are accepted; what cannot be read is set aside, never trusted, never lost.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::host::files::Files;
use crate::host::paths;
use crate::plan::Plan;

/// The whole receipt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Receipt {
    /// Version of this format.
    pub schema: u32,
    /// Version of the agent that wrote it.
    pub agent_version: String,
    /// Whose receipt this is.
    pub instance_id: String,
    /// The boot of the last run.
    pub boot_id: String,
    /// SHA-256 of the plan.
    pub plan_digest: String,
    /// `running`, `converged`, `failed`, `reboot-needed`, `interrupted`, or what a later version says.
    pub outcome: String,
    /// Reboots asked for since the machine last converged.
    pub reboots: u32,
    /// The boot in which the last reboot was asked for; the run goes on only in another one.
    pub reboot_asked_in: Option<String>,
    /// The steps.
    pub steps: Vec<Record>,
}

/// One step's record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The step's id.
    pub id: String,
    /// Its digest at that time.
    pub digest: String,
    /// `running`, `done`, `failed`, `interrupted`, or what a later version says.
    pub state: String,
    /// When work (not only looking) began.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// One line per action.
    pub evidence: Vec<String>,
    /// The error's code, when it failed.
    pub code: Option<String>,
}

/// What [`load`] found.
pub enum Found {
    /// Nothing.
    None,
    /// This instance's receipt.
    Ours(Receipt),
    /// Something else, which now lies where the sentence says.
    SetAside(String),
}

/// Reads the receipt of `instance_id`; sets aside one that is unreadable or another instance's.
pub fn load(files: &Files, instance_id: &str) -> Result<Found> {
    let Some(bytes) = files.read(paths::RECEIPT)? else { return Ok(Found::None) };
    let why = match serde_json::from_slice::<Receipt>(&bytes) {
        Ok(receipt) if receipt.instance_id == instance_id => return Ok(Found::Ours(receipt)),
        Ok(receipt) => format!("belongs to instance {}", receipt.instance_id),
        Err(e) => format!("cannot be read ({e})"),
    };
    let kept = files.set_aside(paths::RECEIPT)?;
    Ok(Found::SetAside(format!("{} {why}; it is kept as {}", paths::RECEIPT, kept.display())))
}

/// Whether this instance has no receipt here, while what an image keeps says that an earlier run was on this disk: then
/// the machine was started from an image. Moves nothing. Only root may read a receipt: to others it is not said.
pub fn is_of_an_image(files: &Files, instance_id: &str) -> Result<bool> {
    let Ok(own) = files.read(paths::RECEIPT) else { return Ok(false) };
    let own = own.and_then(|bytes| serde_json::from_slice::<Receipt>(&bytes).ok());
    Ok(own.is_none_or(|receipt| receipt.instance_id != instance_id) && files.exists(paths::CHOICE)?)
}

impl Receipt {
    /// An empty receipt for this instance.
    pub fn new(instance_id: &str) -> Self {
        Self { schema: 1, instance_id: instance_id.to_owned(), ..Self::default() }
    }

    /// Notes what this run is going to do. Records of steps that the plan no longer has are kept: they
    /// explain what lies on the machine.
    pub fn begin(&mut self, plan: &Plan, boot_id: &str) {
        self.schema = 1;
        self.agent_version = env!("CARGO_PKG_VERSION").into();
        boot_id.clone_into(&mut self.boot_id);
        self.plan_digest.clone_from(&plan.digest);
        self.outcome = "running".into();
    }

    /// Whether the step's last work ended well.
    pub fn is_done(&self, id: &str) -> bool {
        self.steps.iter().any(|r| r.id == id && r.state == "done")
    }

    /// Whether that work was on this very form of the step, not on one of an earlier plan.
    pub fn is_done_as(&self, id: &str, digest: &str) -> bool {
        self.steps.iter().any(|r| r.id == id && r.digest == digest && r.state == "done")
    }

    /// The record of a step, made if it is new.
    pub fn record(&mut self, id: &str) -> &mut Record {
        if let Some(at) = self.steps.iter().position(|r| r.id == id) {
            return &mut self.steps[at];
        }
        self.steps.push(Record { id: id.to_owned(), ..Record::default() });
        let last = self.steps.len() - 1;
        &mut self.steps[last]
    }

    /// Writes it durably, readable by root only.
    pub fn save(&self, files: &Files) -> Result<()> {
        let json = serde_json::to_vec_pretty(self).map_err(|e| {
            Error::new(crate::error::Code::Io, format!("cannot write {}", paths::RECEIPT)).because(e)
        })?;
        files.write(paths::RECEIPT, &json, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().to_path_buf());
        (dir, files)
    }

    #[test]
    fn unknown_states_and_fields_of_a_later_version_are_accepted() {
        let (_dir, files) = scratch();
        let later = r#"{"schema":9,"instance_id":"i-1","outcome":"hibernating","moon":1,
                        "steps":[{"id":"driver","state":"waiting-for-moon"}]}"#;
        files.write(paths::RECEIPT, later.as_bytes(), 0o600).unwrap();
        let Found::Ours(receipt) = load(&files, "i-1").unwrap() else { panic!("not ours") };
        assert_eq!(receipt.steps[0].state, "waiting-for-moon");
    }

    #[test]
    fn a_broken_or_foreign_receipt_is_kept_but_not_trusted() {
        let (_dir, files) = scratch();
        for bytes in [&b"{\"schema\":1,"[..], br#"{"instance_id":"i-other"}"#] {
            files.write(paths::RECEIPT, bytes, 0o600).unwrap();
            assert!(matches!(load(&files, "i-1").unwrap(), Found::SetAside(_)));
            assert!(!files.exists(paths::RECEIPT).unwrap());
        }
        assert_eq!(files.list(paths::SET_ASIDE_DIR).unwrap().len(), 2);
    }

    #[test]
    fn a_step_done_under_another_plan_is_not_done_as_this_one() {
        let mut receipt = Receipt::new("i-1");
        let record = receipt.record("driver");
        record.digest = "old".into();
        record.state = "done".into();
        assert!(receipt.is_done("driver") && receipt.is_done_as("driver", "old"));
        assert!(!receipt.is_done_as("driver", "new"));
    }
}
