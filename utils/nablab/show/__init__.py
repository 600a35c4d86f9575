"""Show: pictures, movies and sliders. A picture is a function of an Axes and data."""
