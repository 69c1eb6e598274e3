//! What the loop needs of a world: somebody who reads everything, and somebody who makes one change.
//!
//! Must not decide. A performer sends a step's preconditions along; one that fails is news, and the loop observes again.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use quorate_plan::{Intent, MemberId, Observation, Step};
use quorate_proto::admin::v1::TlsPlane;

use crate::members::Access;

/// One reading of a world.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub observation: Observation,
    /// Admin URL of each record's process, as far as there is one to ask.
    pub admin_urls: BTreeMap<String, String>,
    /// For each admin URL that is https: what to show, and whom to expect.
    pub admin_tls: BTreeMap<String, AdminTls>,
    /// What members said they use of certificates, by record.
    pub tls: BTreeMap<String, Vec<TlsPlane>>,
    /// Pods that end, and to which clients are still sent.
    pub ending: Vec<EndingPod>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndingPod {
    pub name: String,
    pub uid: String,
}

/// How to reach an admin port by TLS.
#[derive(Debug, Clone)]
pub struct AdminTls {
    /// The name in the member's certificate.
    pub host: String,
    pub access: Arc<Access>,
}

impl Seen {
    /// Where the member with this id answered in this pass, or where its record's process should answer.
    pub fn admin_url_of(&self, id: MemberId) -> Option<&str> {
        let word = self.observation.words.iter().find(|w| w.member_id == id).map(|w| w.record.as_str());
        let record = || self.observation.records.iter().find(|r| r.member_id == Some(id)).map(|r| r.name.as_str());
        self.admin_urls.get(word.or_else(record)?).map(String::as_str)
    }
}

/// Where a new member will be reached; written into the configuration when it is added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberUrls {
    pub peer: Vec<String>,
    pub client: Vec<String>,
}

/// Why a step was not carried out, by what the loop does next.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// A precondition no longer holds: not an error, observe again.
    #[error("{0}")]
    News(String),
    /// It failed, or its outcome is not known: observe again after a pause, and say so in the status.
    #[error("{0}")]
    Failed(String),
}

/// Reads the objects of a world; the members' own words are added by the loop. Never fails as a whole: what could not be read is
/// named in the observation. Changes nothing but certificates, without which members cannot be asked.
pub trait Observer {
    fn observe(&self, intent: &Intent) -> impl Future<Output = Seen> + Send;

    /// A reading that costs nothing and may lag, where there is one. With what it takes to speak with members. No step rests on it.
    fn glance(&self, _intent: &Intent) -> impl Future<Output = Option<Seen>> + Send {
        std::future::ready(None)
    }

    /// Adds to a reading what it takes to speak with members, now that it is known what is wanted of them.
    fn equip(&self, _intent: &Intent, _seen: &mut Seen) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// Changes objects, volumes and processes of a world. Membership is changed through the members themselves.
pub trait Performer {
    /// Carries out one step.
    ///
    /// # Errors
    /// See `ActError`; after either, nothing is assumed about what happened.
    fn act(&self, intent: &Intent, step: &Step, seen: &Seen) -> impl Future<Output = Result<(), ActError>> + Send;

    fn urls(&self, intent: &Intent, record: &str) -> Result<MemberUrls, ActError>;
}
