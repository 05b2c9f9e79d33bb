//! What the rules make of the backup sets, as `status` shows it.
//! Never decides what goes: that was decided before. Invariant: what goes with the next backup is named with its reason.

use serde_json::{Value, json};

use super::RetentionFacts;

impl RetentionFacts {
    /// In one line, for people.
    pub(super) fn text(&self) -> String {
        let mut parts = vec![match self.rules.as_str() {
            "" => "all backups and all WAL".to_owned(),
            rules => rules.to_owned(),
        }];
        for (set, note) in &self.pinned {
            parts.push(match note.as_str() {
                "" => format!("{set} is pinned"),
                note => format!("{set} is pinned ({note})"),
            });
        }
        for (set, why) in &self.goes {
            parts.push(format!("{set} goes with the next backup: {why}"));
        }
        if self.goes.is_empty()
            && let Some((set, days)) = &self.next
        {
            parts.push(format!(
                "{set} goes next, in {days} days with a backup a day"
            ));
        }
        crate::output::escaped(&parts.join("; "))
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let pinned = self
            .pinned
            .iter()
            .map(|(set, note)| json!({ "set": set, "note": note }));
        let goes = self
            .goes
            .iter()
            .map(|(set, why)| json!({ "set": set, "why": why }));
        let next = self
            .next
            .as_ref()
            .map(|(set, days)| json!({ "set": set, "in_days": days }));
        json!({
            "rules": Some(&self.rules).filter(|rules| !rules.is_empty()),
            "pinned": pinned.collect::<Vec<_>>(),
            "goes": goes.collect::<Vec<_>>(),
            "next": next,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_next_is_told_with_its_reason() {
        let mut facts = RetentionFacts {
            rules: "keep_backups = 2".to_owned(),
            pinned: vec![("data.master.4".to_owned(), "before 18".to_owned())],
            goes: Vec::new(),
            next: Some(("data.master.1".to_owned(), 3)),
        };
        assert_eq!(
            facts.text(),
            "keep_backups = 2; data.master.4 is pinned (before 18); data.master.1 goes next, in 3 days with a backup a day"
        );
        facts.goes = vec![(
            "data.master.2".to_owned(),
            "beyond keep_backups = 2".to_owned(),
        )];
        assert!(
            facts
                .text()
                .ends_with("data.master.2 goes with the next backup: beyond keep_backups = 2")
        );
        let shown = facts.json();
        assert_eq!(shown["next"]["in_days"], 3);
        assert_eq!(shown["goes"][0]["why"], "beyond keep_backups = 2");
        assert_eq!(RetentionFacts::default().text(), "all backups and all WAL");
        assert_eq!(RetentionFacts::default().json()["rules"], Value::Null);
    }
}
