"""Data: teacher-student problems (later: text)."""
