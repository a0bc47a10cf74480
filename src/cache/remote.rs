//! A cache on a server that speaks the HTTP protocol of Bazel's remote caches: `bazel-remote`, and others.
//!
//! Blobs are at `/cas/SHA256`, and what belongs to a key at `/ac/SHA256`, as an `ActionResult` of the Remote Execution API
//! (`build/bazel/remote/execution/v2/remote_execution.proto`): the files' names, hashes and sizes. Servers check that the blobs of
//! an action are there, and that a blob has its hash.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use prost::Message;
use rustls::crypto::ring;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, AsSendBody, Body};

use super::key::hash_bytes;
use super::{ENTRY, Entry, Key};

/// The variable with what a server wants to hear of who asks: `Bearer …`, or `Basic …`.
pub const AUTHORIZATION: &str = "KILN_CACHE_AUTHORIZATION";

/// A server is slow, not dead, as long as it says something that often.
const SILENCE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(5);
/// Lists of files are short.
const LIST: u64 = 1 << 22;

#[derive(Clone, PartialEq, Message)]
struct ActionResult {
    #[prost(message, repeated, tag = "2")]
    output_files: Vec<OutputFile>,
}

#[derive(Clone, PartialEq, Message)]
struct OutputFile {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(message, optional, tag = "2")]
    digest: Option<Digest>,
}

#[derive(Clone, PartialEq, Message)]
struct Digest {
    #[prost(string, tag = "1")]
    hash: String,
    #[prost(int64, tag = "2")]
    size_bytes: i64,
}

/// A server of blobs.
#[derive(Clone)]
pub struct Remote {
    /// Without a slash at its end.
    url: String,
    agent: Agent,
    authorization: Option<String>,
}

/// A server did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum RemoteError {
    #[error("{0}")]
    Unreached(Box<ureq::Error>),
    #[error("{what}: the server answers {status}")]
    Status { what: String, status: u16 },
    #[error("the list of files cannot be read: {0}")]
    List(#[from] prost::DecodeError),
    #[error("the entry cannot be read: {0}")]
    Entry(#[from] serde_json::Error),
    #[error("{0}")]
    Unfit(&'static str),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

impl From<ureq::Error> for RemoteError {
    fn from(e: ureq::Error) -> RemoteError {
        RemoteError::Unreached(Box::new(e))
    }
}

impl RemoteError {
    pub(super) fn is_everywhere(&self) -> bool {
        match self {
            RemoteError::Unreached(_) => true,
            RemoteError::Status { status, .. } => *status != 404,
            _ => false,
        }
    }
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> RemoteError {
    let what = what.to_string();
    move |source| RemoteError::Io { what, source }
}

impl Remote {
    pub(super) fn at(url: &str) -> Result<Remote, String> {
        let known = ["http://", "https://"];
        let Some(rest) = known.iter().find_map(|scheme| url.strip_prefix(scheme)) else {
            return Err("a cache is a folder, or at http:// or https://".into());
        };
        let host = rest.split('/').next().unwrap_or_default();
        if host.contains('@') {
            return Err(format!(
                "a password does not belong into a URL, which reports may show: put `Basic …` into {AUTHORIZATION}"
            ));
        }
        if host.is_empty() || rest.contains(['?', '#']) {
            return Err("the URL of a cache has a host, and no query".into());
        }
        let tls = TlsConfig::builder()
            // What the system trusts, so that a company's own authority counts.
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(ring::default_provider().into())
            .build();
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .tls_config(tls)
            .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Remote {
            url: url.trim_end_matches('/').to_string(),
            agent: agent.into(),
            authorization: std::env::var(AUTHORIZATION).ok().filter(|a| !a.is_empty()),
        })
    }

    pub(super) fn find(&self, key: &str) -> Result<Option<Entry>, RemoteError> {
        let Some(list) = self.read("ac", key)? else {
            return Ok(None);
        };
        let list = ActionResult::decode(list.as_slice())?;
        let entry = list.output_files.iter().find(|f| f.path == ENTRY);
        let digest = entry.and_then(|f| f.digest.as_ref());
        let digest = digest.ok_or(RemoteError::Unfit("its list of files is of another tool"))?;
        if !is_hash(&digest.hash) {
            return Err(RemoteError::Unfit("its list has a hash that is none"));
        }
        let gone = || RemoteError::Unfit("the server has the list of its files, and not the files");
        let text = self.read("cas", &digest.hash)?.ok_or_else(gone)?;
        if hash_bytes(&text) != digest.hash {
            return Err(RemoteError::Unfit("its facts are not what was kept"));
        }
        let entry: Entry = serde_json::from_slice(&text)?;
        match entry.files.values().all(|hash| is_hash(hash)) {
            true => Ok(Some(entry)),
            false => Err(RemoteError::Unfit("its list has a hash that is none")),
        }
    }

    /// Writes a blob into a file; whether it is the right one is not looked at.
    pub(super) fn fetch(&self, hash: &str, to: &Path) -> Result<(), RemoteError> {
        let body = self.get("cas", hash)?.ok_or(RemoteError::Status {
            what: format!("GET cas/{hash}"),
            status: 404,
        })?;
        let name = to.display().to_string();
        let mut file = File::create(to).map_err(failed(&name))?;
        io::copy(&mut body.into_reader(), &mut file).map_err(failed(&name))?;
        Ok(())
    }

    pub(super) fn keep(
        &self,
        bundle: &Path,
        names: &[String],
        key: &Key,
        anew: bool,
    ) -> Result<(), RemoteError> {
        let entry = Entry::of(bundle, names, key).map_err(failed(ENTRY))?;
        let mut list = ActionResult::default();
        let mut add = |name: &str, hash: &str, bytes: u64| {
            list.output_files.push(OutputFile {
                path: name.to_string(),
                digest: Some(Digest {
                    hash: hash.to_string(),
                    size_bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
                }),
            });
        };
        for (name, hash) in &entry.files {
            let path = bundle.join(name);
            let file = File::open(&path).map_err(failed(name))?;
            let bytes = file.metadata().map_err(failed(name))?.len();
            if anew || !self.has("cas", hash)? {
                self.put("cas", hash, &file)?;
            }
            add(name, hash, bytes);
        }
        let text = serde_json::to_vec_pretty(&entry)?;
        let hash = hash_bytes(&text);
        self.put("cas", &hash, text.as_slice())?;
        add(ENTRY, &hash, text.len() as u64);
        // The list comes last: who finds it finds the files.
        let list = list.encode_to_vec();
        self.put("ac", &key.sha256, list.as_slice())
    }

    fn place(&self, kind: &str, hash: &str) -> String {
        format!("{}/{kind}/{hash}", self.url)
    }

    /// `None`: the server has none.
    fn get(&self, kind: &str, hash: &str) -> Result<Option<Body>, RemoteError> {
        let request = self.agent.get(self.place(kind, hash));
        let answer = match &self.authorization {
            Some(a) => request.header("authorization", a).call()?,
            None => request.call()?,
        };
        match answer.status().as_u16() {
            200 => Ok(Some(answer.into_body())),
            404 => Ok(None),
            status => Err(status_of("GET", kind, hash, status)),
        }
    }

    /// A short blob.
    fn read(&self, kind: &str, hash: &str) -> Result<Option<Vec<u8>>, RemoteError> {
        let Some(mut body) = self.get(kind, hash)? else {
            return Ok(None);
        };
        let text = body.with_config().limit(LIST).read_to_vec()?;
        Ok(Some(text))
    }

    fn has(&self, kind: &str, hash: &str) -> Result<bool, RemoteError> {
        let request = self.agent.head(self.place(kind, hash));
        let answer = match &self.authorization {
            Some(a) => request.header("authorization", a).call()?,
            None => request.call()?,
        };
        Ok(answer.status().as_u16() == 200)
    }

    /// Files and slices say their length, without which servers take nothing.
    fn put(&self, kind: &str, hash: &str, body: impl AsSendBody) -> Result<(), RemoteError> {
        let request = self.agent.put(self.place(kind, hash));
        let request = request.header("content-type", "application/octet-stream");
        let answer = match &self.authorization {
            Some(a) => request.header("authorization", a).send(body)?,
            None => request.send(body)?,
        };
        match answer.status().as_u16() {
            200..=204 => Ok(()),
            status => Err(status_of("PUT", kind, hash, status)),
        }
    }
}

fn status_of(verb: &str, kind: &str, hash: &str, status: u16) -> RemoteError {
    RemoteError::Status {
        what: format!("{verb} {kind}/{hash}"),
        status,
    }
}

/// Whether a text is a SHA-256, so that it can stand in a URL.
fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the authorization.
        f.debug_tuple("Remote").field(&self.url).finish()
    }
}
