//! What is in a repository: its commit and its files, asked through `hf-hub`.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFClient, HFError, HFRepositorySync, RepoTypeModel, split_id};

use super::Hub;
use super::cache::{is_commit, stays_inside};
use super::hash::Checksum;
use super::lock::{Commit, Entry};
use super::monitor::{Monitor, TICK};
use crate::{Error, Result};

/// Why the Hub gave no answer.
pub(super) enum Refusal {
    /// Nobody there: what is in the cache may serve.
    Unreachable(Error),
    /// An answer, but not the wanted one.
    Final(Error),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let (Refusal::Unreachable(error) | Refusal::Final(error)) = refusal;
        error
    }
}

/// Questions about one repository.
pub(super) struct Listing<'a> {
    hub: &'a Hub,
    id: &'a str,
    monitor: &'a Monitor,
    repo: HFRepositorySync<RepoTypeModel>,
}

impl<'a> Listing<'a> {
    pub(super) fn new(hub: &'a Hub, id: &'a str, monitor: &'a Monitor) -> Result<Self> {
        // Not a header value, so none is sent: hf-hub would otherwise take a token from the environment.
        const NO_TOKEN: &str = "\n";
        let refuse = |e: HFError| Error::hub(id, format!("endpoint {}: {e}", hub.endpoint));
        if let Some(token) = &hub.token {
            // hf-hub would leave out what is no header value, and the answer would be a puzzle.
            hub.bearer(token)?;
        }
        let http = hub.http_client(hub.http_builder())?;
        let (owner, name) = split_id(id);
        let client = HFClient::builder()
            .endpoint(hub.endpoint.as_str())
            .token(hub.token.as_deref().unwrap_or(NO_TOKEN))
            .cache_dir(&hub.cache)
            .client(http)
            .retry_max_attempts(hub.retries)
            .retry_base_delay(hub.backoff.max(Duration::from_millis(1)))
            .build_sync()
            .map_err(refuse)?;
        Ok(Self { hub, id, monitor, repo: client.model(owner, name) })
    }

    /// The commit that `revision` points to now.
    pub(super) fn commit(&self, revision: &str) -> std::result::Result<String, Refusal> {
        let wanted = revision.to_owned();
        let info = self.ask(move |repo| repo.info().revision(wanted).send());
        let info = info.map_err(Refusal::Final)?.map_err(|e| self.explain(e, revision))?;
        match info.sha.filter(|sha| is_commit(sha)) {
            Some(sha) => Ok(sha),
            None => Err(self.malformed(format!("named no commit for revision {revision}"))),
        }
    }

    /// All files of `commit`.
    pub(super) fn files(&self, commit: &str) -> std::result::Result<Commit, Refusal> {
        let wanted = commit.to_owned();
        let tree = self.ask(move |repo| repo.list_tree().revision(wanted).recursive(true).send());
        let mut files = BTreeMap::new();
        for entry in tree.map_err(Refusal::Final)?.map_err(|e| self.explain(e, commit))? {
            let RepoTreeEntry::File { path, size, oid, lfs, .. } = entry else { continue };
            if !stays_inside(&path) {
                return Err(self.malformed(format!("listed a file outside the repository: {path:?}")));
            }
            let checksum = match &lfs {
                // The tree's own id of an LFS file is that of its pointer, not of its content.
                Some(lfs) => lfs.sha256.as_deref().and_then(Checksum::parse),
                None => Checksum::parse(&oid).filter(|c| matches!(c, Checksum::GitSha1(_))),
            };
            if lfs.is_none() && checksum.is_none() {
                return Err(
                    self.malformed(format!("listed {path} with the git id {oid:?}, which is no sha1"))
                );
            }
            files.insert(path, Entry { size, lfs: lfs.is_some(), checksum, verified: None });
        }
        Ok(Commit { listed: true, files })
    }

    /// hf-hub cannot be interrupted, so it works on a thread that is left behind when the caller wants to stop: it
    /// changes nothing, and ends with its time-outs at the latest.
    fn ask<R: Send + 'static>(
        &self,
        question: impl FnOnce(HFRepositorySync<RepoTypeModel>) -> R + Send + 'static,
    ) -> Result<R> {
        let repo = self.repo.clone();
        let (answer, answered) = mpsc::channel();
        std::thread::spawn(move || answer.send(question(repo)));
        loop {
            self.monitor.check()?;
            match answered.recv_timeout(TICK) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::hub(self.id, "the request ended without an answer"));
                }
            }
        }
    }

    fn malformed(&self, what: String) -> Refusal {
        Refusal::Final(Error::hub(self.id, format!("{} {what}; is it a Hub?", self.hub.endpoint)))
    }

    fn explain(&self, error: HFError, revision: &str) -> Refusal {
        let answer = |status: u16, code: Option<&str>| {
            let wanted = Wanted::Revision(revision);
            Refusal::Final(Error::hub(self.id, self.hub.refused(status, code, wanted)))
        };
        match error {
            HFError::AuthRequired { context }
            | HFError::Forbidden { context }
            | HFError::Http { context } => answer(context.status.as_u16(), context.error_code.as_deref()),
            HFError::RateLimited { context, .. } => answer(context.status.as_u16(), None),
            HFError::RepoNotFound { .. } => answer(404, Some("RepoNotFound")),
            HFError::RevisionNotFound { context, .. } => {
                answer(404, context.as_ref().and_then(|c| c.error_code.as_deref()))
            }
            HFError::Request { source, .. } if source.is_connect() || source.is_timeout() => {
                Refusal::Unreachable(Error::hub(self.id, self.hub.unreachable(&source)))
            }
            other => Refusal::Final(Error::hub(self.id, format!("{}: {other}", self.hub.endpoint))),
        }
    }
}

/// What a request was about, for the message when it fails.
#[derive(Clone, Copy)]
pub(super) enum Wanted<'a> {
    Revision(&'a str),
    File(&'a str),
}

impl Hub {
    /// What an HTTP status that is no success means, and what to do about it.
    pub(super) fn refused(&self, status: u16, code: Option<&str>, wanted: Wanted<'_>) -> String {
        let endpoint = &self.endpoint;
        let credentials = match self.token {
            Some(_) => "the token in use has no access to it (check HF_TOKEN)",
            None => "no token is set (set HF_TOKEN, or run `hf auth login`)",
        };
        match (status, code, wanted) {
            (401, _, _) => format!(
                "{endpoint} answered 401: the repository does not exist, or it is private or gated and {credentials}"
            ),
            (403, _, _) => format!(
                "{endpoint} answered 403: access is restricted and {credentials}; \
                 accept the licence on the repository's page first"
            ),
            (404, Some("RepoNotFound"), _) => {
                format!("{endpoint} has no such repository (if it is private: {credentials})")
            }
            (404, Some("RevisionNotFound"), Wanted::Revision(name)) => {
                format!("the repository has no revision {name:?}")
            }
            (404, _, Wanted::Revision(name)) => {
                format!("{endpoint} answered 404: no such repository, or it has no revision {name:?}")
            }
            (404, _, Wanted::File(path)) => format!("{endpoint} answered 404: the commit has no file {path}"),
            (429, _, _) => format!("{endpoint} answered 429: too many requests; wait, or set HF_TOKEN"),
            _ => format!("{endpoint} answered with HTTP status {status}"),
        }
    }

    /// No answer at all.
    pub(super) fn unreachable(&self, cause: &reqwest::Error) -> String {
        format!(
            "cannot reach {} ({}); check the network and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to use the cache only",
            self.endpoint,
            root_cause(cause)
        )
    }
}

/// The innermost cause: the outer ones repeat the address.
pub(super) fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
