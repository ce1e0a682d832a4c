"""The attention explorer: one layout, shown as an app, a widget, or one offline page."""
