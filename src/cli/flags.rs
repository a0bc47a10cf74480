//! How the command line spells what messages name.

use crate::setting::Setting;

/// `--dim`
pub(super) fn flag(of: Setting) -> String {
    of.option()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::setting;

    /// Of a command and its verbs.
    fn flags(command: &clap::Command, out: &mut BTreeSet<String>) {
        let longs = command.get_arguments().filter_map(|a| a.get_long());
        out.extend(longs.map(|long| format!("--{long}")));
        let shorts = command.get_arguments().filter_map(|a| a.get_short());
        out.extend(shorts.map(|short| format!("-{short}")));
        for verb in command.get_subcommands() {
            flags(verb, out);
        }
    }

    #[test]
    fn what_messages_name_are_options() {
        let mut known = BTreeSet::new();
        flags(&crate::cli::command(), &mut known);
        let unknown = setting::ALL.iter().map(|s| flag(*s));
        let unknown: Vec<String> = unknown.filter(|f| !known.contains(f)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}
