//! What keys do to the screen, and how it is drawn. Pure: whoever owns the terminal hands over keys and a frame.

use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Row, Table as Grid};

use super::model::View;
use super::table::{Cell, Page, Table};

/// Most characters of a filter.
const FILTER_MAX: usize = 63;

/// What the operator looks at.
#[derive(Debug, Clone)]
pub(super) struct Screen {
    page: Page,
    /// Column of the order and whether it is the other way round, by page.
    orders: [(usize, bool); Page::ALL.len()],
    filter: String,
    is_typing: bool,
    /// Rows above the first that is shown.
    skipped: usize,
    has_color: bool,
    /// Why nothing new is heard; empty if it is.
    pub(super) trouble: String,
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    GoOn,
    Quit,
}

impl Screen {
    pub(super) fn new(has_color: bool) -> Self {
        Self {
            page: Page::Networks,
            orders: Page::ALL.map(|page| (page.first_order(), false)),
            filter: String::new(),
            is_typing: false,
            skipped: 0,
            has_color,
            trouble: String::new(),
        }
    }

    fn at(&self) -> usize {
        Page::ALL.iter().position(|page| *page == self.page).unwrap_or_default()
    }

    fn turn(&mut self, by: usize) {
        let next = (self.at() + by) % Page::ALL.len();
        self.page = Page::ALL.get(next).copied().unwrap_or(Page::Networks);
        self.skipped = 0;
    }

    /// Another column of this page.
    fn order(&mut self, by: usize) {
        let columns = Table::of(&View::default(), self.page).heads.len().max(1);
        let at = self.at();
        if let Some((column, reversed)) = self.orders.get_mut(at) {
            (*column, *reversed) = ((*column + by) % columns, false);
        }
    }

    fn back(&mut self) -> usize {
        Table::of(&View::default(), self.page).heads.len().saturating_sub(1)
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "other keys do nothing")]
    pub(super) fn key(&mut self, key: KeyEvent) -> Then {
        if key.kind == KeyEventKind::Release {
            return Then::GoOn;
        }
        if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
            return Then::Quit;
        }
        if self.is_typing {
            self.typed(key.code);
            return Then::GoOn;
        }
        match key.code {
            KeyCode::Char('q') => return Then::Quit,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Tab => self.turn(1),
            KeyCode::BackTab => self.turn(Page::ALL.len() - 1),
            KeyCode::Right => self.order(1),
            KeyCode::Left => {
                let back = self.back();
                self.order(back);
            }
            KeyCode::Down => self.skipped = self.skipped.saturating_add(1),
            KeyCode::Up => self.skipped = self.skipped.saturating_sub(1),
            KeyCode::PageDown => self.skipped = self.skipped.saturating_add(10),
            KeyCode::PageUp => self.skipped = self.skipped.saturating_sub(10),
            KeyCode::Home => self.skipped = 0,
            KeyCode::Char('r') => {
                let at = self.at();
                if let Some((_, reversed)) = self.orders.get_mut(at) {
                    *reversed = !*reversed;
                }
            }
            KeyCode::Char('/') => {
                self.filter.clear();
                self.is_typing = true;
            }
            _ => {}
        }
        Then::GoOn
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "other keys do nothing")]
    fn typed(&mut self, code: KeyCode) {
        self.skipped = 0;
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(c) if !c.is_control() && self.filter.chars().count() < FILTER_MAX => {
                self.filter.push(c);
            }
            _ => {}
        }
    }

    /// The rows as they are shown, all of them.
    fn table(&self, view: &View) -> (Table, usize, bool) {
        let mut table = Table::of(view, self.page);
        let (column, reversed) = self.orders.get(self.at()).copied().unwrap_or_default();
        table.filter(&self.filter);
        table.order(column, reversed);
        (table, column, reversed)
    }

    fn style(&self, color: Color) -> Style {
        if self.has_color { Style::new().fg(color) } else { Style::new() }
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>, view: &View) {
        let [tabs, head, body, note, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Min(0),
            Constraint::Length(1),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let titles = Page::ALL.iter().flat_map(|page| {
            let style =
                if *page == self.page { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
            [Span::styled(format!(" {} ", page.title()), style), Span::raw(" ")]
        });
        frame.render_widget(Line::from_iter(titles), tabs);
        let (table, column, reversed) = self.table(view);
        self.skipped = self.skipped.min(table.rows.len().saturating_sub(usize::from(body.height)));
        self.grid(frame, head, body, &table, (column, reversed));
        let shown = format!("{} of {}", table.rows.len(), Table::of(view, self.page).rows.len());
        frame.render_widget(Line::raw(format!("{shown}; {}", self.page.note())), note);
        let last = match (self.is_typing, self.filter.as_str(), self.trouble.as_str()) {
            (true, filter, _) => Line::raw(format!("/{filter}_")),
            (false, _, trouble) if !trouble.is_empty() => {
                Line::styled(crate::show::printable(trouble), self.style(Color::Red))
            }
            (false, "", _) => Line::raw("q quit  Tab page  <- -> order  r reverse  up/down scroll  / filter"),
            (false, filter, _) => Line::raw(format!("filter \"{filter}\"  Esc clears it")),
        };
        frame.render_widget(last, keys);
    }

    fn grid(&self, frame: &mut Frame<'_>, head: Rect, body: Rect, table: &Table, order: (usize, bool)) {
        let is_number =
            |column: usize| table.rows.iter().filter_map(|row| row.get(column)).any(Cell::is_number);
        let heads: Vec<_> = (0..)
            .zip(&table.heads)
            .map(|(at, head)| match order {
                (column, false) if column == at => format!("{head}v"),
                (column, true) if column == at => format!("{head}^"),
                _ => head.clone(),
            })
            .collect();
        let cells: Vec<Vec<String>> =
            table.rows.iter().map(|row| row.iter().map(Cell::show).collect()).collect();
        let width = |column: usize| {
            let all = cells.iter().filter_map(|row| row.get(column)).chain(heads.get(column));
            all.map(|text| text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..heads.len()).map(width).collect();
        let line = |row: &[String]| {
            let cells = (0..).zip(row).map(|(at, text)| {
                let width = widths.get(at).copied().unwrap_or(0);
                if is_number(at) { format!("{text:>width$}") } else { format!("{text:width$}") }
            });
            Row::new(cells.collect::<Vec<_>>())
        };
        let columns =
            widths.iter().map(|width| Constraint::Length(u16::try_from(*width).unwrap_or(u16::MAX)));
        let columns: Vec<_> = columns.collect();
        let bold = Style::new().add_modifier(Modifier::BOLD);
        frame.render_widget(Grid::new([line(&heads).style(bold)], columns.clone()).column_spacing(2), head);
        let shown = cells.iter().skip(self.skipped).take(body.height.into()).map(|row| {
            let is_bad = row.iter().any(|cell| matches!(cell.as_str(), "down" | "never" | "aborted"));
            let style = if is_bad { self.style(Color::Red) } else { Style::new() };
            line(row).style(style)
        });
        frame.render_widget(Grid::new(shown, columns).column_spacing(2), body);
    }
}

/// All pages as plain text, for `--once`.
pub(super) fn text(view: &View) -> String {
    let mut out = String::new();
    for page in Page::ALL {
        let mut table = Table::of(view, page);
        table.order(page.first_order(), false);
        let mut lines = vec![table.heads.clone()];
        lines.extend(table.rows.iter().map(|row| row.iter().map(Cell::show).collect()));
        let width =
            |at: usize| lines.iter().filter_map(|line| line.get(at)).map(|cell| cell.chars().count()).max();
        let widths: Vec<_> = (0..table.heads.len()).map(|at| width(at).unwrap_or(0)).collect();
        out += &format!("{} ({})\n", page.title(), page.note());
        for line in &lines {
            let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            out += &format!("  {}\n", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
    }
    out
}
