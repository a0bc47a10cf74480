//! A headless Chromium, driven through the pipe of its DevTools protocol: what the page says, how it looks, and what it asks
//! the network for.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Names under which systems know the browser.
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

pub struct Browser {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    sent: u64,
    /// Of the page that is open.
    session: String,
    events: Vec<Value>,
    _profile: TempDir,
}

/// Light or dark, and how wide.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    pub width: u32,
    pub height: u32,
    pub dark: bool,
    pub phone: bool,
}

impl Screen {
    pub const DESKTOP: Screen = Screen {
        width: 1200,
        height: 900,
        dark: false,
        phone: false,
    };
    pub const DARK: Screen = Screen {
        dark: true,
        ..Screen::DESKTOP
    };
    pub const PHONE: Screen = Screen {
        width: 390,
        height: 844,
        dark: false,
        phone: true,
    };
}

impl Browser {
    /// `None` after saying why the test is skipped.
    pub fn start() -> Option<Browser> {
        let installed = |name: &&&str| {
            let found = Command::new("sh")
                .args(["-c", &format!("command -v {name}")])
                .output();
            found.is_ok_and(|o| o.status.success())
        };
        let Some(name) = NAMES.iter().find(installed) else {
            println!("skipped: no Chromium ({})", NAMES.join(", "));
            return None;
        };
        let profile = tempfile::tempdir().unwrap();
        // The protocol is read from descriptor 3 and written to descriptor 4.
        let mut process = Command::new("sh")
            .args([
                "-c",
                "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1",
                "sh",
                name,
            ])
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
            ])
            .args([
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
            ])
            .args([
                "--disable-component-update",
                "--disable-sync",
                "--hide-scrollbars",
            ])
            .arg("--remote-debugging-pipe")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut browser = Browser {
            to: process.stdin.take().unwrap(),
            from: BufReader::new(process.stdout.take().unwrap()),
            process,
            sent: 0,
            session: String::new(),
            events: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().unwrap().to_string();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let mut message = json!({"id": self.sent, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let mut bytes = serde_json::to_vec(&message).unwrap();
        bytes.push(0);
        self.to.write_all(&bytes).unwrap();
        loop {
            let answer = self.read();
            if answer["id"] == self.sent {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].clone();
            }
        }
    }

    /// The next message; events are kept.
    fn read(&mut self) -> Value {
        let mut bytes = Vec::new();
        self.from.read_until(0, &mut bytes).unwrap();
        assert_eq!(bytes.pop(), Some(0), "Chromium ended");
        let message: Value = serde_json::from_slice(&bytes).unwrap();
        if message["id"].is_null() {
            self.events.push(message.clone());
        }
        message
    }

    /// Opens a file and waits until it is loaded and drawn.
    pub fn open(&mut self, page: &Path, screen: Screen) {
        self.show(screen);
        self.events.clear();
        let url = format!("file://{}", page.canonicalize().unwrap().display());
        self.call("Page.navigate", json!({"url": url}));
        while !self
            .events
            .iter()
            .any(|e| e["method"] == "Page.loadEventFired")
        {
            self.read();
        }
        let drawn = "new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))";
        self.evaluate(drawn);
    }

    /// Changes the screen of the page that is open.
    pub fn show(&mut self, screen: Screen) {
        let Screen { width, height, .. } = screen;
        let metrics = json!({
            "width": width, "height": height, "deviceScaleFactor": if screen.phone { 2 } else { 1 }, "mobile": screen.phone
        });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        let scheme = if screen.dark { "dark" } else { "light" };
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.call("Emulation.setEmulatedMedia", json!({"features": [feature]}));
    }

    /// The value of an expression, awaited if it is a promise.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let result = self.call("Runtime.evaluate", params);
        assert!(
            result["exceptionDetails"].is_null(),
            "{expression}: {result}"
        );
        result["result"]["value"].clone()
    }

    /// The text that a reader sees.
    pub fn text(&mut self) -> String {
        let text = self.evaluate("document.body.innerText");
        text.as_str().unwrap().to_string()
    }

    /// Errors on the console, exceptions, and requests for anything but the file itself.
    pub fn complaints(&self) -> Vec<String> {
        let mut all = Vec::new();
        for event in &self.events {
            let p = &event["params"];
            match event["method"].as_str() {
                Some("Runtime.exceptionThrown") => all.push(p["exceptionDetails"].to_string()),
                Some("Runtime.consoleAPICalled") if p["type"] != "log" => all.push(p.to_string()),
                Some("Log.entryAdded") => all.push(p["entry"].to_string()),
                Some("Network.requestWillBeSent") => {
                    let url = p["request"]["url"].as_str().unwrap_or_default();
                    if !(url.starts_with("file:") && p["type"] == "Document"
                        || url.starts_with("data:"))
                    {
                        all.push(format!("request of {url}"));
                    }
                }
                _ => {}
            }
        }
        all
    }

    /// The whole page as PNG.
    pub fn picture(&mut self) -> Vec<u8> {
        let shot = json!({"format": "png", "captureBeyondViewport": true});
        self.decoded("Page.captureScreenshot", shot)
    }

    pub fn print(&mut self) -> Vec<u8> {
        self.decoded(
            "Page.printToPDF",
            json!({"printBackground": false, "preferCSSPageSize": true}),
        )
    }

    fn decoded(&mut self, method: &str, params: Value) -> Vec<u8> {
        let result = self.call(method, params);
        base64(result["data"].as_str().unwrap())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn base64(text: &str) -> Vec<u8> {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text
        .bytes()
        .filter_map(|b| LETTERS.iter().position(|&l| l == b));
    let digits: Vec<u32> = digits.map(|d| d as u32).collect();
    let mut out = Vec::new();
    for four in digits.chunks(4) {
        let bits = four.iter().fold(0, |n, d| n << 6 | d) << (6 * (4 - four.len()));
        let bytes = [(bits >> 16) as u8, (bits >> 8) as u8, bits as u8];
        out.extend(&bytes[..four.len() - 1]);
    }
    out
}
