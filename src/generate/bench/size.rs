//! `prompt=512,new=128`

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Tokens of a prompt, or of the text that an encoder reads, and new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Size {
    pub prompt: usize,
    pub new: usize,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let mut size = Size {
            prompt: 512,
            new: 128,
        };
        for part in text.split(',') {
            let number = |n: &str| n.parse().ok().filter(|n| *n > 0);
            match part
                .split_once('=')
                .map(|(k, n)| (k.trim(), number(n.trim())))
            {
                Some(("prompt", Some(n))) => size.prompt = n,
                Some(("new", Some(n))) => size.new = n,
                _ => {
                    return Err(
                        "write prompt=512,new=128: tokens of the prompt, and new ones".into(),
                    );
                }
            }
        }
        Ok(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let size = |prompt, new| Ok(Size { prompt, new });
        assert_eq!("prompt=128,new=64".parse(), size(128, 64));
        assert_eq!("new=8".parse(), size(512, 8));
        for bad in ["", "prompt", "prompt=0", "old=3", "prompt=1;new=2"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
