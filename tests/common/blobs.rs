//! A server of blobs as bazel-remote is one: `/cas` by hash, and `/ac`, of which it checks that the blobs are there.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use prost::Message;
use sha2::{Digest as _, Sha256};

#[derive(Clone, PartialEq, Message)]
struct ActionResult {
    #[prost(message, repeated, tag = "2")]
    files: Vec<OutputFile>,
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
    bytes: i64,
}

type Blobs = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// The server; its threads end with the process.
pub struct Server {
    pub url: String,
    /// By their paths: `/cas/…`, `/ac/…`.
    pub blobs: Blobs,
    /// Requests: `PUT /cas/…`.
    pub asked: Arc<Mutex<Vec<String>>>,
}

/// What a client must say of itself.
pub const AUTHORIZATION: &str = "Bearer right";

impl Server {
    /// `locked`: who does not say who it is gets nothing.
    pub fn start(locked: bool) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            url: format!("http://{}/some/where", listener.local_addr().unwrap()),
            blobs: Blobs::default(),
            asked: Arc::default(),
        };
        let (blobs, asked) = (server.blobs.clone(), server.asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (blobs, asked) = (blobs.clone(), asked.clone());
                std::thread::spawn(move || while answer(&stream, &blobs, &asked, locked) {});
            }
        });
        server
    }

    pub fn paths(&self, kind: &str) -> Vec<String> {
        let blobs = self.blobs.lock().unwrap();
        let begins = format!("/{kind}/");
        blobs
            .keys()
            .filter(|p| p.starts_with(&begins))
            .cloned()
            .collect()
    }
}

/// Answers one request; `false` where there is no other.
fn answer(stream: &TcpStream, blobs: &Blobs, asked: &Mutex<Vec<String>>, locked: bool) -> bool {
    let mut reader = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        Some(line.trim_end().to_string())
    };
    let Some(first) = line() else { return false };
    let (mut length, mut known) = (None, false);
    while let Some(header) = line().filter(|h| !h.is_empty()) {
        let (name, value) = header.split_once(": ").unwrap();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok(),
            "authorization" => known = value == AUTHORIZATION,
            _ => {}
        }
    }
    let mut words = first.split(' ');
    let (verb, path) = (words.next().unwrap(), words.next().unwrap());
    let path = path.strip_prefix("/some/where").unwrap().to_string();
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).unwrap();
    asked.lock().unwrap().push(format!("{verb} {path}"));
    let mut blobs = blobs.lock().unwrap();
    let (status, text) = match (verb, blobs.get(&path)) {
        _ if locked && !known => (401, Vec::new()),
        ("GET", Some(blob)) => (200, blob.clone()),
        ("HEAD", Some(_)) => (200, Vec::new()),
        ("PUT", _) if length.is_none() => (411, Vec::new()),
        ("PUT", _) => match fits(&path, &body, &blobs) {
            true => (200, Vec::new()),
            false => (400, b"it does not fit".to_vec()),
        },
        _ => (404, Vec::new()),
    };
    if (verb, status) == ("PUT", 200) {
        blobs.insert(path, body);
    }
    let head = format!(
        "HTTP/1.1 {status} so\r\nContent-Length: {}\r\n\r\n",
        text.len()
    );
    let mut out = stream;
    out.write_all(head.as_bytes())
        .and_then(|()| out.write_all(&text))
        .is_ok()
}

fn fits(path: &str, body: &[u8], blobs: &BTreeMap<String, Vec<u8>>) -> bool {
    let hash: String = Sha256::digest(body)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    match path.strip_prefix("/cas/") {
        Some(name) => name == hash,
        None => {
            let Ok(action) = ActionResult::decode(body) else {
                return false;
            };
            let there = |d: &Digest| {
                let blob = blobs.get(&format!("/cas/{}", d.hash));
                blob.is_some_and(|b| b.len() as i64 == d.bytes)
            };
            action
                .files
                .iter()
                .all(|f| !f.path.is_empty() && f.digest.as_ref().is_some_and(there))
        }
    }
}
